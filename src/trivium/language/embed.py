"""Sentence embeddings (Reimers & Gurevych 2019): one vector for a text, near those of texts that
mean the same.

    vector = normalise(mean over the tokens of features(tokens))

How the tokens are pooled is read from the files that sentence-transformers writes beside a model
(modules.json, 1_Pooling/config.json, sentence_bert_config.json), or from a GGUF file.

N texts, T tokens, C width.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from trivium import hub
from trivium.errors import UsageError
from trivium.files import read_json
from trivium.gguf_file import GGUFFile
from trivium.language.families import gguf_family, hf_family
from trivium.language.families.bert import BERT
from trivium.language.families.xlnet import is_xlnet
from trivium.language.pretrained import Precision, read_folder, read_gguf, unfolded
from trivium.language.tokenizer import Tokenizer
from trivium.language.transformer import Transformer
from trivium.nn.devices import pick_device

BATCH = 32  # texts


def mean(features: Tensor, real: Tensor) -> Tensor:
    """(B, T, C) and the tokens that are no padding (B, T) → (B, C)"""
    weights = real.unsqueeze(-1).to(features.dtype)
    return (features * weights).sum(1) / weights.sum(1)


def first(features: Tensor, real: Tensor) -> Tensor:
    """The vector of the first token, [CLS]."""
    return features[:, 0]


def is_embedder(path: Path) -> bool:
    """Whether the model of a folder or GGUF file reads a text as a whole, so makes embeddings."""
    path, _ = unfolded(path)
    if path.is_dir():
        raw = read_json(path / "config.json")
        if "kind" in raw:  # a run's
            return raw["kind"] == "transformer" and raw.get("causal") is False
        return not is_xlnet(raw) and hf_family(raw) is BERT
    return gguf_family(GGUFFile(path).metadata) is BERT


POOLINGS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"mean": mean, "cls": first}
FLAGS = {  # of sentence-transformers before 5.2
    "mean": "pooling_mode_mean_tokens",
    "cls": "pooling_mode_cls_token",
    "max": "pooling_mode_max_tokens",
    "mean_sqrt_len": "pooling_mode_mean_sqrt_len_tokens",
    "weighted_mean": "pooling_mode_weightedmean_tokens",
    "last": "pooling_mode_lasttoken",
}
GGUF_POOLINGS = {1: "mean", 2: "cls"}


@dataclass(frozen=True)
class Embedder:
    """Makes vectors of texts. `max_tokens` is the longest text it reads, markup included."""

    name: str
    model: Transformer
    tokenizer: Tokenizer
    pooling: str
    normalise: bool
    max_tokens: int

    @classmethod
    def load(
        cls, model: str | Path, *, device: str = "auto", precision: Precision = "float32"
    ) -> "Embedder":
        """The embedding model of this name, in this folder or GGUF file.

        Raises NotFound and UsageError, in one line, for whatever is wrong with it.
        """
        path = hub.find(str(model))
        place = pick_device(device)
        if not is_embedder(path):  # its last token alone would have seen everything
            raise UsageError(f"{path} generates text; an embedding model (BERT) is needed here")
        if path.is_dir():
            return _from_folder(path, read_folder(path, place, precision, head=False))
        file = GGUFFile(path)
        return _from_gguf(path, file.metadata, read_gguf(file, place, precision))

    @property
    def width(self) -> int:
        return self.model.config.width

    def length(self, text: str) -> int:
        """Its tokens, markup included."""
        return len(self.tokenizer.encode(text, wrap=True))

    @torch.no_grad()
    def embed(self, texts: Sequence[str], *, truncate: bool = False, batch: int = BATCH) -> Tensor:
        """One vector for each text: (N, C), float32, on the CPU; of length 1 if `normalise`.

        A text longer than `max_tokens` raises UsageError, unless `truncate` says that its end may
        be ignored.
        """
        tokens = [self._tokens(text, i, truncate) for i, text in enumerate(texts)]
        vectors = torch.empty(len(tokens), self.width)
        order = sorted(range(len(tokens)), key=lambda i: len(tokens[i]))
        for start in range(0, len(order), batch):
            rows = order[start : start + batch]
            vectors[rows] = self._vectors([tokens[i] for i in rows])
        return vectors

    def _vectors(self, tokens: Sequence[Sequence[int]]) -> Tensor:
        lengths = torch.tensor([len(ids) for ids in tokens])
        longest = int(lengths.max())
        padding = self.tokenizer.pad or 0
        rows = [[*ids, *[padding] * (longest - len(ids))] for ids in tokens]
        device = next(self.model.layers.parameters()).device
        real = (torch.arange(longest) < lengths[:, None]).to(device)  # (B, T)
        features = self.model.features(torch.tensor(rows, device=device), real=real)
        vectors = POOLINGS[self.pooling](features.float(), real)
        return (F.normalize(vectors, dim=-1) if self.normalise else vectors).cpu()

    def _tokens(self, text: str, number: int, truncate: bool) -> list[int]:
        ids = self.tokenizer.encode(text, wrap=True)
        excess = len(ids) - self.max_tokens
        if excess <= 0:
            return ids
        if not truncate:
            raise UsageError(
                f"text {number + 1} has {len(ids)} tokens and {self.name} reads "
                f"{self.max_tokens}: split it, or allow truncation (truncate=True)"
            )
        body = self.tokenizer.encode(text)
        end = len(ids) - len(body) - 1 if ids[1 : 1 + len(body)] == body else 0  # of [SEP]
        return ids[: len(ids) - excess - end] + ids[len(ids) - end :]


def _from_folder(folder: Path, model: Transformer) -> Embedder:
    pooling, normalise = "mean", True
    if (folder / "modules.json").is_file():
        normalise = False
        for module in _modules(folder / "modules.json"):
            kind = str(module.get("type")).rpartition(".")[2]
            if kind == "Pooling":
                pooling = _pooling(folder / str(module.get("path")) / "config.json")
            elif kind == "Normalize":
                normalise = True
            elif kind != "Transformer":
                raise UsageError(f"{folder}: a sentence model with a {kind} layer is unsupported")
    longest = model.config.context
    if (folder / "sentence_bert_config.json").is_file():
        stated = read_json(folder / "sentence_bert_config.json").get("max_seq_length")
        longest = min(stated or longest, longest)
    tokenizer = Tokenizer.from_folder(folder)
    return Embedder(folder.name, model, tokenizer, pooling, normalise, longest)


def _modules(path: Path) -> list[dict[str, Any]]:
    try:
        modules = json.loads(path.read_bytes())
    except ValueError as error:
        raise UsageError(f"{path} is not valid JSON ({error})") from None
    if not isinstance(modules, list) or not all(isinstance(m, dict) for m in modules):
        raise UsageError(f"{path} does not hold a list of modules")
    return modules


def _pooling(path: Path) -> str:
    config = read_json(path)
    modes = [name for name, key in FLAGS.items() if config.get(key)]
    modes = [config["pooling_mode"]] if "pooling_mode" in config else modes
    if len(modes) != 1 or modes[0] not in POOLINGS:
        raise UsageError(f"{path}: pooling {' and '.join(modes) or 'missing'} is unsupported")
    return modes[0]


def _from_gguf(path: Path, metadata: Any, model: Transformer) -> Embedder:
    kind = metadata.get(f"{metadata['general.architecture']}.pooling_type", 1)
    if kind not in GGUF_POOLINGS:
        raise UsageError(f"{path}: pooling type {kind} is unsupported")
    tokenizer = Tokenizer.from_gguf(metadata)
    return Embedder(path.stem, model, tokenizer, GGUF_POOLINGS[kind], True, model.config.context)
