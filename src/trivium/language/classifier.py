"""Classification by a pre-trained language model (GPT: Radford et al. 2018).

    P(y | x_1 … x_n) = softmax(h_n W_y)        h_n: the features of the last token
    L = L_FT + λ·L_PT                          L_FT = −ln P(y | x)
                                               L_PT = −mean_i ln P(x_i | x_1 … x_{i−1})

Both losses are of the same pass over the text. The second is the one the model was pre-trained
with; it keeps what the model knew.

B texts, T tokens, C width, K classes.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trivium.data import IGNORE
from trivium.errors import UsageError
from trivium.language.losses import head_loss
from trivium.language.transformer import Transformer, TransformerConfig
from trivium.train import Loss


@dataclass(frozen=True)
class ClassifierConfig(TransformerConfig):
    """Those of the language model, and the names of the classes."""

    classes: tuple[str, ...] = ("no", "yes")


class Classifier(nn.Module):
    """A language model, `body`, which still is one, and a score of every class."""

    def __init__(self, config: ClassifierConfig) -> None:
        super().__init__()
        if not config.causal:
            raise UsageError("a classifier of this kind reads a text with a causal model")
        self.config = config
        names = (f.name for f in fields(TransformerConfig))
        self.body = Transformer(TransformerConfig(**{n: getattr(config, n) for n in names}))
        self.scores = nn.Linear(config.width, len(config.classes), bias=False)
        if not self.scores.weight.is_meta:
            nn.init.normal_(self.scores.weight, std=0.02)

    @classmethod
    def of(cls, body: Transformer, classes: Sequence[str]) -> "Classifier":
        """A classifier around a model that was trained already, which it takes over."""
        config = ClassifierConfig(**asdict(body.config), classes=tuple(classes))
        with torch.device("meta"):
            made = cls(config)
        made.body = body
        made.scores = nn.Linear(config.width, len(classes), bias=False)
        nn.init.normal_(made.scores.weight, std=0.02)
        return made

    def features(self, ids: Tensor) -> Tensor:
        """ids (B, T) → (B, T, C)"""
        return self.body.features(ids)

    def logits(self, features: Tensor, lengths: Tensor) -> Tensor:
        """features (B, T, C) of texts of these lengths (B,), padded on the right → (B, K)"""
        rows = torch.arange(len(lengths), device=lengths.device)
        return self.scores(features[rows, lengths - 1])

    def forward(self, ids: Tensor, lengths: Tensor | None = None) -> Tensor:
        """ids (B, T), padded on the right behind `lengths` (B,) → the scores (B, K)"""
        if lengths is None:
            lengths = torch.full(ids.shape[:1], ids.shape[1], device=ids.device)
        return self.logits(self.features(ids), lengths)


def classification(
    language: float = 0.0,
) -> Callable[[nn.Module, Mapping[str, Tensor]], Loss]:
    """The loss L_FT + λ·L_PT, λ being `language`, of a `Classifier`.

    Its batches hold ids (B, T), padded on the right, lengths (B,) and labels (B,). It weighs texts,
    and reports the share that was right, and both losses.
    """

    def loss(model: nn.Module, batch: Mapping[str, Tensor]) -> Loss:
        assert isinstance(model, Classifier)
        ids, lengths, labels = batch["ids"], batch["lengths"], batch["labels"]
        features = model.features(ids)
        logits = model.logits(features, lengths).float()
        task = F.cross_entropy(logits, labels, reduction="sum")
        metrics = {
            "accuracy": (logits.argmax(-1) == labels).sum(),
            "task_loss": task.detach(),
        }
        if language:
            told = language_loss(model.body, features, ids, lengths)
            metrics["language_loss"] = told.detach()
            task = task + language * told
        return Loss(task, len(labels), metrics)

    return loss


def language_loss(body: Transformer, features: Tensor, ids: Tensor, lengths: Tensor) -> Tensor:
    """The sum over the texts of −mean_i ln P(x_i | x_<i), of texts of two tokens at least."""
    places = torch.arange(1, ids.shape[1], device=ids.device)
    real = places < lengths[:, None]  # (B, T − 1), where there is a token to predict
    targets = ids[:, 1:].masked_fill(~real, IGNORE)
    share = (1 / (lengths - 1).clamp(min=1))[:, None].expand_as(targets)
    return head_loss(
        body, features[:, :-1].flatten(0, 1), targets.flatten(), share.flatten().float()
    )
