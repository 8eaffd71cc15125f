"""What the recipes of assistants share: the model they go on from, how it is trained and kept.

A model that is given gets an adapter (LoRA), and the run's folder holds just that, in PEFT's files:
`-m` takes such a folder, and finds the model that it is for. With rank=0 all weights are trained,
and the folder is a model of its own.

Where nothing is given and the default model is not here, a tiny one is made on the spot: it shows
how the recipe works, in a minute. It is not a model to talk to.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trivium import hub
from trivium.errors import UsageError
from trivium.intervals import wilson
from trivium.language import bpe
from trivium.language.adapters import add_lora, save_adapter
from trivium.language.alignment.experience import verified
from trivium.language.alignment.rollouts import Answerer, Prompt
from trivium.language.chat_template import ChatTemplate
from trivium.language.pretrained import LanguageModel, load_trainable
from trivium.language.rendering import render
from trivium.language.tokenizer import Tokenizer
from trivium.language.transformer import Transformer, TransformerConfig
from trivium.recipes.exercises import conversations, exercises
from trivium.recipes.hardware import fast_precision
from trivium.recipes.run import Run
from trivium.train import Loss, TrainConfig

TINY = "tiny"
LARGEST = 9  # number in the exercises of a tiny model
CHATML = """{% for message in messages %}<|im_start|>{{ message['role'] }}
{{ message['content'] }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
GREEDY = 64  # questions at a time


@dataclass(frozen=True)
class Assistant:
    """A model to be trained. base: what it is called where an adapter names it; "" for one that
    was made on the spot, of which all weights are trained."""

    base: str
    model: Transformer
    tokenizer: Tokenizer
    template: ChatTemplate

    @property
    def tiny(self) -> bool:
        return not self.base

    @property
    def filler(self) -> int:
        """The id that rows are padded with."""
        ids = (self.tokenizer.pad, self.tokenizer.eos, self.tokenizer.bos)
        return next((id for id in ids if id is not None), 0)

    @property
    def language_model(self) -> LanguageModel:
        name = Path(self.base).name or TINY
        return LanguageModel(name, self.model, self.tokenizer, self.template, "float32")

    def render(self, messages: Sequence[Mapping[str, Any]], tools: Any) -> Any:
        """Tokens, and which of them are learnt, as `trivium.data` wants them."""
        return render(self.tokenizer, self.template, messages, tools)


def open_assistant(
    run: Run, model: str, make: Callable[[], Assistant], *, template: bool = True
) -> Assistant:
    """A model by its name or folder, in float32, on the run's device. For "": the default model, or
    what `make` makes if that is not here; which is said. template=False: one without a chat
    template gets ChatML's."""
    name = model
    if not model:
        entry = hub.CATALOGUE[hub.DEFAULT]
        name = hub.DEFAULT if entry.is_pulled else TINY
        here = "" if entry.is_pulled else f" ({hub.DEFAULT} is not here: `trivium pull` fetches it)"
        run.tell(f"model: {name}{here}")
    if name == TINY:
        made = make()
        made.model.to(run.device)
        return made
    path = hub.find(name)
    parts = load_trainable(path)
    if not isinstance(parts.model, Transformer) or not parts.model.config.causal:
        raise UsageError(f"{name} is no causal Transformer: it cannot become an assistant")
    found = parts.template
    if found is None and template:
        raise UsageError(f"{name} has no chat template: train it with the recipe sft first")
    parts.model.to(run.device)
    base = name if name in hub.CATALOGUE or not path.exists() else str(path.resolve())
    return Assistant(base, parts.model, parts.tokenizer, found or ChatTemplate(CHATML))


def tiny(seed: int) -> Assistant:
    """A model of 100,000 weights that knows nothing yet."""
    texts = [m["content"] for c in conversations(exercises(2000, seed)) for m in c["messages"]]
    tokenizer = bpe.train(texts, 384)
    config = TransformerConfig(
        vocab_size=tokenizer.vocab_size, context=128, width=64, layers=2, heads=2, hidden=192
    )
    torch.manual_seed(seed)
    return Assistant("", Transformer(config), tokenizer, ChatTemplate(CHATML))


def tiny_trained(run: Run, seed: int, steps: int) -> Assistant:
    """One that `sft` trained on exercises, in the run's folder."""
    from trivium.recipes import sft

    folder = run.folder / "base"
    run.tell(f"a tiny model learns its exercises first, in {folder}")
    device = str(run.config.device)
    sft.main(sft.Config(model=TINY, out=str(folder), seed=seed, steps=steps, device=device))
    parts = load_trainable(folder)
    assert parts.template is not None
    return Assistant("", parts.model, parts.tokenizer, parts.template)


def adapt(assistant: Assistant, rank: int) -> bool:
    """Give it an adapter, unless the rank is 0 or the model is tiny. Whether it has one now."""
    if not rank or assistant.tiny:
        return False
    add_lora(assistant.model, rank, 2.0 * rank)
    return True


def plan_of(
    run: Run,
    assistant: Assistant,
    config: Any,
    *,
    rates: tuple[float, float, float] = (5e-4, 2e-5, 3e-3),
    **settings: Any,
) -> TrainConfig:
    """Settings that suit the model. rates: for an adapter, for all weights, and for a tiny model,
    where the config's is 0."""
    rate = rates[2] if assistant.tiny else rates[0] if config.rank else rates[1]
    plan = TrainConfig(
        learning_rate=rate,
        weight_decay=0.0,
        betas=(0.9, 0.98),
        precision=fast_precision(run.device),
        seed=config.seed,
        device=config.device,
        **settings,
    )
    given = config.learning_rate
    return replace(plan, learning_rate=given) if given else plan


def too_few(name: str, fitting: str = "") -> UsageError:
    """`fitting`: what it would have to be like."""
    what = f"nothing {fitting}".rstrip()
    return UsageError(f"{name}: {what} is left to be held out; give more, or raise held_out=")


def save(run: Run, assistant: Assistant, adapted: bool) -> None:
    """Leave what was trained in the run's folder."""
    if not adapted:
        model = assistant.model
        run.save_model(model, "transformer", model.config, assistant.tokenizer, assistant.template)
    elif run.first:
        save_adapter(assistant.model, run.folder, base=assistant.base)


# -- measuring ------------------------------------------------------------------------------------


@torch.no_grad()
def mean_loss(
    model: nn.Module, loss: Callable[[Any, Any], Loss], batches: Iterable[Mapping[str, Tensor]]
) -> dict[str, float]:
    """ "loss" and the metrics over all batches, on average."""
    device = next(model.parameters()).device
    was, sums, weight = model.training, dict[str, float](), 0.0
    model.eval()
    for batch in batches:
        found = loss(model, {name: value.to(device) for name, value in batch.items()})
        weight += float(found.weight)
        for name, value in {"loss": found.total, **found.metrics}.items():
            sums[name] = sums.get(name, 0.0) + float(value)
    model.train(was)
    return {name: value / weight for name, value in sums.items()} if weight else {}


@dataclass(frozen=True)
class Score:
    """How many questions were answered rightly, and some of the answers."""

    right: int
    count: int
    shown: str

    @property
    def share(self) -> float:
        return self.right / self.count

    def __str__(self) -> str:
        low, high = wilson(self.right, self.count)
        return f"{self.share:.1%} ({low:.1%} – {high:.1%}, {self.right} of {self.count})"


def answered(assistant: Assistant, prompts: Sequence[Prompt], *, max_tokens: int = 48) -> Score:
    """Greedy answers to questions whose answers a program can tell."""
    answerer = Answerer(assistant.language_model, max_tokens=max_tokens, temperature=0.0)
    right, shown = 0, list[str]()
    for start in range(0, len(prompts), GREEDY):
        some = prompts[start : start + GREEDY]
        answers = answerer([answerer.encode(prompt) for prompt in some], [0] * len(some))
        right += int(sum(verified(some, answers)))
        for prompt, answer in list(zip(some, answers, strict=True))[: 8 if not shown else 0]:
            shown.append(f"{prompt.messages[-1]['content']}\n    {answer.text}")
    return Score(right, len(prompts), "\n".join(shown))
