"""What turns a gradient into a change of the weights.

    adamw   m ← β₁m + (1−β₁)g,  v ← β₂v + (1−β₂)g²,  w ← w − η(m̂ / (√v̂ + ε) + λw)
            (Loshchilov & Hutter 2019)
    muon    the matrices of the blocks move by the orthogonal factor of their momentum (Jordan
            2024), with the root mean square of AdamW's steps (Liu et al. 2025), so that the same
            learning rate serves; everything else by adamw

Only matrices decay. The names of parameters lead to their state, so that it can be saved.
"""

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn
from torch.optim import AdamW, Muon, Optimizer

from trivium.errors import UsageError
from trivium.train.config import TrainConfig
from trivium.train.parallel import blocks

EPS = 1e-8


class Optimizers:
    """The optimizers of a model's trainable parameters, as one.

    `state` is theirs by name: {"layers.0.mlp.up.weight": {"exp_avg": …, "step": …}}
    """

    def __init__(self, model: nn.Module, config: TrainConfig) -> None:
        self.named = {name: p for name, p in model.named_parameters() if p.requires_grad}
        if not self.named:
            raise UsageError("nothing to train: no parameter of the model wants a gradient")
        self._config = config
        orthogonal = _block_matrices(model) if config.optimizer == "muon" else set()
        adam = [p for p in self.named.values() if p not in orthogonal]
        self._all: list[Optimizer] = []
        if orthogonal:
            self._all.append(_muon([p for p in self.named.values() if p in orthogonal], config))
        if adam:
            self._all.append(_adamw(adam, config))
        self._of = {p: o for o in self._all for group in o.param_groups for p in group["params"]}

    def step(self, learning_rate: float) -> None:
        for optimizer in self._all:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate
            optimizer.step()

    @property
    def gradients(self) -> list[Tensor]:
        return [p.grad for p in self.named.values() if p.grad is not None]

    def forget_gradients(self) -> None:
        for parameter in self.named.values():
            parameter.grad = None

    def state(self) -> Iterator[tuple[str, str, Tensor]]:
        """(parameter, what, tensor) of everything that is kept from step to step."""
        for name, parameter in self.named.items():
            for what, tensor in self._of[parameter].state.get(parameter, {}).items():
                yield name, what, tensor

    def restore(self, name: str, what: str, tensor: Tensor) -> None:
        """Put back what `state` gave; on the device of the parameter, but for a counter that its
        optimizer keeps on the CPU."""
        parameter = self.named[name]
        optimizer = self._of[parameter]
        here = tensor.dim() > 0 or bool(optimizer.param_groups[0].get("fused"))
        optimizer.state[parameter][what] = tensor.to(parameter.device if here else "cpu")


def _adamw(parameters: list[nn.Parameter], config: TrainConfig) -> AdamW:
    groups: list[dict[str, Any]] = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    fused = parameters[0].device.type in ("cpu", "cuda")
    return AdamW(
        [group for group in groups if group["params"]],
        lr=config.learning_rate,
        betas=config.betas,
        eps=EPS,
        fused=fused,
    )


def _muon(matrices: list[nn.Parameter], config: TrainConfig) -> Muon:
    return Muon(  # of matrices that ranks split, as DTensors, the products are of the whole ones
        matrices,
        lr=config.learning_rate,
        weight_decay=config.weight_decay,
        adjust_lr_fn="match_rms_adamw",
    )


def _block_matrices(model: nn.Module) -> set[nn.Parameter]:
    """The matrices inside the blocks: neither an embedding nor the head."""
    return {
        p for block in blocks(model) for p in block.parameters() if p.dim() == 2 and p.requires_grad
    }
