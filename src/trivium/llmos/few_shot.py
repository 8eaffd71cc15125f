"""Tools for a small model that was never trained to call them.

1. Which tool, if any: the model's own vectors for the request, the mean over its tokens after four
   of its layers, go through a linear classifier that is fitted in closed form (ridge regression on
   ±1 targets) to the vectors of the example requests. No training run, no second model.
2. Which arguments: the examples nearest to the request are shown, and the model fills in each
   argument by constrained decoding, so that every call is well-formed. An argument that is a
   piece of its request in every example (a path, a text) can only be a piece of this request.

N examples, F features, K tools.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trivium.files import cache_home, write_atomic
from trivium.language.constrain import Grammar, compile_lark
from trivium.language.engine import Engine
from trivium.language.generation import End, Request
from trivium.llmos.examples import EXAMPLES, NO_TOOL, Example
from trivium.llmos.tools import Tool

DEPTHS = (0.2, 0.4, 0.6, 0.8)  # of the layers whose vectors are used
BEFORE, AFTER = "Request: ", "\nTool:"
RIDGE = 100.0
SHOWN = 5  # examples in a prompt for arguments
LONGEST_ARGUMENT = 256  # tokens
LONGEST_REQUEST = 600  # characters; of a longer one, beginning and end are looked at


@dataclass(frozen=True)
class Choice:
    """A tool (None: just answer), its score, and the vector of the request it was chosen by."""

    tool: Tool | None
    score: float
    vector: Tensor


class ToolChooser:
    """Decides which of `tools` a request is for."""

    def __init__(self, engine: Engine, tools: Sequence[Tool]) -> None:
        self._engine = engine
        self.tools: tuple[Tool | None, ...] = (None, *tools)
        self._layers = [int(depth * engine.model.config.layers) for depth in DEPTHS]
        requests = [list(NO_TOOL)] + [[request for request, _ in examples(t)] for t in tools]
        self._vectors = self._remembered([text for texts in requests for text in texts])
        owner = torch.tensor([k for k, texts in enumerate(requests) for _ in texts])
        self._owner = owner
        # Ridge regression in its dual form, (XXᵀ + λ1) A = Y, since N is far below F.
        self._mean = self._vectors.mean(0)
        self._deviation = self._vectors.std(0).clamp_min(1e-6)
        x = self._standard(self._vectors)
        y = torch.where(owner[:, None] == torch.arange(len(requests)), 1.0, -1.0)
        self._offset = y.mean(0)
        kernel = x @ x.T + RIDGE * torch.eye(len(x))
        self._weights = x.T @ torch.linalg.solve(kernel, y - self._offset)  # (F, K+1)

    def choose(self, request: str) -> Choice:
        vector = self._features([request])[0]
        scores = self._standard(vector) @ self._weights + self._offset
        best = int(scores.argmax())
        return Choice(self.tools[best], float(scores[best]), vector)

    def nearest(self, tool: Tool, vector: Tensor) -> list[Example]:
        """The examples of `tool` by their likeness to the request, the nearest last."""
        index = (self._owner == self.tools.index(tool)).nonzero()[:, 0]
        near = torch.cosine_similarity(
            self._standard(self._vectors[index]), self._standard(vector)[None], dim=1
        )
        known = examples(tool)
        return [known[i] for i in near.argsort()[-SHOWN:].tolist()]

    def _standard(self, vectors: Tensor) -> Tensor:
        return (vectors - self._mean) / self._deviation

    def _features(self, texts: Sequence[str]) -> Tensor:
        short = [abridged(text) for text in texts]
        return self._engine.features(short, self._layers, before=BEFORE, after=AFTER).cpu()

    def _remembered(self, texts: list[str]) -> Tensor:
        """Vectors of the examples, kept on disk: they depend on the model and the texts alone."""
        from safetensors import SafetensorError
        from safetensors.torch import load, save

        key = hashlib.sha256(json.dumps([self._engine.fingerprint, self._layers, texts]).encode())
        path = cache_home() / "examples" / f"{key.hexdigest()[:24]}.safetensors"
        try:
            vectors = load(path.read_bytes())["vectors"]
        except (OSError, SafetensorError, KeyError):
            vectors = self._features(texts)
            write_atomic(path, save({"vectors": vectors}))
        return vectors


def examples(tool: Tool) -> tuple[Example, ...]:
    """Example requests for `tool`; of a tool nobody wrote any for, its own description."""
    known = EXAMPLES.get(tool.name)
    return known or ((f"{tool.name}: {tool.description.splitlines()[0]}", {}),)


def abridged(text: str) -> str:
    """A request on one line, without the middle of a long one."""
    line = " ".join(text.split())
    if len(line) <= LONGEST_REQUEST:
        return line
    return f"{line[: LONGEST_REQUEST // 2]} … {line[-LONGEST_REQUEST // 2 :]}"


def fill_arguments(
    engine: Engine, tool: Tool, request: str, shown: Sequence[Example]
) -> tuple[dict[str, Any], list[End]]:
    """The arguments of a call of `tool`, and the ends of the generations they took.

    An optional argument is written only where the model does not leave it at its default.
    """
    request = abridged(request)
    properties: Mapping[str, Mapping[str, Any]] = tool.parameters["properties"]
    prompt = f"{tool.description.splitlines()[0]}\n\n"
    for past, given in shown:
        prompt += f"Request: {past}\n" + _lines({**_defaults(tool), **given}, properties) + "\n"
    prompt += f"Request: {request}\n"
    arguments: dict[str, Any] = {}
    ends = []
    for name, schema in properties.items():
        prompt += f"{name}:"
        default = _defaults(tool).get(name)
        if copied(name, examples(tool), default):
            grammar = copy_of(request, default)
        else:
            grammar = compile_lark(f'start: " " value\nvalue: %json {json.dumps(schema)}')
        text, end = _generate(engine, prompt, grammar)
        ends.append(end)
        try:
            value = json.loads(text)
        except ValueError:  # cut off at LONGEST_ARGUMENT, or a copy that ends within an escape
            value = text.strip().strip('"') if schema.get("type") == "string" else default
        if isinstance(value, str):
            value = value.strip()  # a copy may begin with the space before a word
        if name in tool.parameters.get("required", ()) or value != default:
            arguments[name] = value
        prompt += f" {json.dumps(value, ensure_ascii=False)}\n"
    return arguments, ends


def copied(name: str, known: Sequence[Example], default: Any) -> bool:
    """Whether in every example this argument stands in the request, word for word."""
    values = [(request, given.get(name, default)) for request, given in known]
    return bool(known[0][1]) and all(
        isinstance(value, str) and (value == default or value in request)
        for request, value in values
    )


# What a copy never splits: a word, a number, a path. Any other character stands for itself.
_CHUNK = re.compile(r"[A-Za-z0-9_./~-]*[A-Za-z0-9_/~-]|.", re.DOTALL)


def copy_of(request: str, default: Any) -> Grammar:
    """A JSON string that is a piece of `request`, or the default."""
    chunks = [json.dumps(chunk, ensure_ascii=False)[1:-1] for chunk in _CHUNK.findall(request)]
    piece = f"%regex {json.dumps({'substring_chunks': chunks}, ensure_ascii=False)}"
    other = f" | {json.dumps(str(default), ensure_ascii=False)}" if default is not None else ""
    return compile_lark(f'start: " \\"" (COPY{other}) "\\""\nCOPY: {piece}')


def _defaults(tool: Tool) -> dict[str, Any]:
    properties = tool.parameters["properties"]
    return {name: s["default"] for name, s in properties.items() if "default" in s}


def _lines(arguments: Mapping[str, Any], order: Mapping[str, Any]) -> str:
    return "".join(
        f"{name}: {json.dumps(arguments[name], ensure_ascii=False)}\n"
        for name in order
        if name in arguments
    )


def _generate(engine: Engine, prompt: str, grammar: Grammar) -> tuple[str, End]:
    ids = engine.tokenizer.encode(prompt)
    events = engine.generate(Request(ids, max_tokens=LONGEST_ARGUMENT, grammar=grammar))
    pieces = list(events)
    end = pieces[-1]
    assert isinstance(end, End)
    return "".join(event.text for event in pieces), end
