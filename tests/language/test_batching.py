"""Many requests at once give what each gives alone."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from torch import nn

from trivium.errors import TriviumError, UsageError
from trivium.language.batching import Batcher
from trivium.language.constrain import compile_choice
from trivium.language.engine import Engine
from trivium.language.generation import End, Request
from trivium.language.pretrained import LanguageModel
from trivium.language.sampling import Sampling
from trivium.language.tokenizer import Tokenizer
from trivium.language.transformer import Transformer, TransformerConfig
from trivium.nn.packed import PackedLinear, pack


def make_engine(*, packed: bool) -> Engine:
    tokenizer = Tokenizer.train(["the quick brown fox jumps over the lazy dog"] * 9, 300)
    torch.manual_seed(0)
    config = TransformerConfig(
        vocab_size=tokenizer.vocab_size, context=256, width=64, layers=2, heads=4, hidden=96
    )
    model = Transformer(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    if packed:
        for parent in list(model.modules()):
            for name, child in list(parent.named_children()):
                if isinstance(child, nn.Linear | nn.Embedding):
                    setattr(parent, name, PackedLinear(pack(child.weight.detach()), "Q8_0"))
        model.to(torch.bfloat16)
    return Engine(LanguageModel("tiny", model, tokenizer, None, "float32"))


REQUESTS = [
    Request(
        [5 + i, 9, 30 + 7 * i, *range(20, 20 + 5 * i)],
        Sampling(temperature=0.9 * (i % 2), seed=i, top_p=0.9, presence_penalty=0.5),
        max_tokens=6 + 3 * i,
        grammar=compile_choice(["the quick fox", "the lazy dog"]) if i == 3 else None,
        top_logprobs=2 if i == 2 else None,
    )
    for i in range(8)
]


def answer(source: Engine | Batcher, request: Request) -> list[object]:
    events = list(source.generate(request))
    assert isinstance(events[-1], End)
    return [*events[:-1], replace(events[-1], cached_tokens=0)]


@pytest.mark.parametrize("packed", [True, False])
def test_together_as_alone(packed: bool) -> None:
    """The same tokens. In float32 for several rounds; packed for one, because there a prompt that
    is partly in the cache is computed by other means, and a near tie may fall the other way."""
    alone = [answer(make_engine(packed=packed), request) for request in REQUESTS]
    with Batcher(make_engine(packed=packed), batch=5) as batcher, ThreadPoolExecutor(8) as pool:
        for _ in range(1 if packed else 3):
            together = list(pool.map(lambda request: answer(batcher, request), REQUESTS))
            for got, expected in zip(together, alone, strict=True):
                # Prefilled in other pieces, a float32 sum may differ in its last bits.
                assert [getattr(e, "id", e) for e in got] == [getattr(e, "id", e) for e in expected]
    assert batcher.load[1] == 0


def test_a_reader_that_leaves_frees_its_place() -> None:
    with Batcher(make_engine(packed=False), batch=1) as batcher:
        long = batcher.generate(Request([5, 6], Sampling(1.0, seed=1), max_tokens=200))
        next(long)
        assert batcher.load[0] == 1
        long.close()  # type: ignore[attr-defined]
        started = time.monotonic()
        assert answer(batcher, Request([7, 8], max_tokens=2))
        assert time.monotonic() - started < 20


def test_one_request_in_error_harms_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make_engine(packed=False)
    expected = answer(engine, REQUESTS[1])
    from trivium.language import generation as module

    choose = module.Run.choose

    def faulty(self: module.Run) -> object:
        if self._prompt[0] == 99 and len(self.made) == 2:
            raise TriviumError("broken")
        return choose(self)

    monkeypatch.setattr(module.Run, "choose", faulty)
    with Batcher(engine) as batcher, ThreadPoolExecutor(2) as pool:
        bad = pool.submit(answer, batcher, Request([99, 3], max_tokens=30))
        good = pool.submit(answer, batcher, REQUESTS[1])
        assert [getattr(e, "id", e) for e in good.result()] == [
            getattr(e, "id", e) for e in expected
        ]
        with pytest.raises(TriviumError, match="broken"):
            bad.result()
        assert answer(batcher, REQUESTS[0])


def test_what_cannot_be_is_said_at_once() -> None:
    with Batcher(make_engine(packed=False)) as batcher:
        with pytest.raises(UsageError):
            batcher.generate(Request([]))
        with pytest.raises(UsageError):
            batcher.generate(Request([5] * 300))


def test_closing_cuts_everybody() -> None:
    batcher = Batcher(make_engine(packed=False), batch=1)
    streams = [
        batcher.generate(Request([5, i], Sampling(1.0, seed=1), max_tokens=200)) for i in range(3)
    ]
    next(streams[0])
    errors: list[object] = []

    def drain(stream: object) -> None:
        try:
            list(stream)  # type: ignore[call-overload]
        except TriviumError as error:
            errors.append(error)

    readers = [threading.Thread(target=drain, args=(stream,)) for stream in streams]
    for reader in readers:
        reader.start()
    batcher.close()
    batcher.close()
    for reader in readers:
        reader.join(10)
        assert not reader.is_alive()
    assert len(errors) >= 2
    with pytest.raises(TriviumError, match="shutting down"):
        batcher.generate(Request([5]))


def test_asked_again_a_packed_model_says_the_same() -> None:
    """The prompt is in the cache the second time; greedy decoding takes the same way."""
    engine = make_engine(packed=True)
    for request in REQUESTS[::2]:
        longer = replace(request, max_tokens=80, grammar=None)
        assert answer(engine, longer) == answer(engine, longer)
