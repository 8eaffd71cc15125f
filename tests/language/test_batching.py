"""Many requests at once give what each gives alone."""

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from trivium.errors import TriviumError, UsageError
from trivium.language.batching import Batcher, Cancelled, Worker
from trivium.language.constrain import Constrainer, Constraint, compile_choice
from trivium.language.engine import Engine
from trivium.language.generation import End, Request, Run
from trivium.language.pretrained import LanguageModel
from trivium.language.sampling import Sampling
from trivium.language.slots import Slot
from trivium.language.tokenizer import StopStrings, Tokenizer
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
                # What is found in the cache was computed in other pieces: its last bits differ.
                assert [getattr(e, "id", e) for e in got] == [getattr(e, "id", e) for e in expected]
    assert batcher.load[1] == 0


@pytest.mark.parametrize("packed", [True, False])
def test_to_the_bit(packed: bool) -> None:
    """Prompts of several chunks: where they are cut does not depend on who else is there."""
    requests = [
        Request(
            [7 + i, *range(20, 40 + 15 * i)],
            Sampling(temperature=0.9 * (i % 2), seed=i),
            max_tokens=5,
            top_logprobs=3,
        )
        for i in range(6)
    ]

    def engine() -> Engine:
        made = make_engine(packed=packed)
        made.chunk = 16
        return made

    alone = [answer(engine(), request) for request in requests]
    with Batcher(engine()) as batcher, ThreadPoolExecutor(6) as pool:
        assert list(pool.map(lambda request: answer(batcher, request), requests)) == alone


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


# Who waits for whom


class Logged(Engine):
    """Notes what is computed, in order, and in which thread."""

    def __init__(self, engine: Engine, *, chunk: int, seconds: float = 0.0) -> None:
        vars(self).update(vars(engine))
        self.chunk, self.seconds = chunk, seconds
        self.log: list[tuple[str, int]] = []  # a step and its rows, a chunk and its prompt
        self.threads: set[str] = set()

    def advance(self, runs: Sequence[Run]) -> None:
        self._note("step", len(runs))
        super().advance(runs)

    def read_chunk(self, slot: Slot, prompt: Sequence[int]) -> Tensor | None:
        self._note("chunk", prompt[0])
        return super().read_chunk(slot, prompt)

    def features(
        self, texts: Sequence[str], layers: Sequence[int], *, before: str = "", after: str = ""
    ) -> Tensor:
        self._note("features", len(texts))
        return super().features(texts, layers, before=before, after=after)

    def _note(self, what: str, number: int) -> None:
        time.sleep(self.seconds)
        self.log.append((what, number))
        self.threads.add(threading.current_thread().name)


def until(condition: Callable[[], object]) -> None:
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < 20, "it never happened"
        time.sleep(0.002)


def test_a_long_prompt_holds_up_nobody() -> None:
    """Between two tokens lies at most one chunk, and a short prompt passes a long one."""
    engine = Logged(make_engine(packed=False), chunk=8, seconds=0.002)
    with Batcher(engine) as batcher:
        talking = batcher.generate(Request([5, 6], Sampling(1.0, seed=1), max_tokens=250))
        next(talking)
        streams = [
            batcher.generate(Request([9, *range(20, 220)], max_tokens=2)),
            batcher.generate(Request([8, *range(20, 220)], max_tokens=2)),
            batcher.generate(Request([7, 20, 21], max_tokens=2)),
        ]
        for stream in streams:
            assert isinstance(list(stream)[-1], End)
        talking.close()
        log = list(engine.log)
    first = log.index(("chunk", 9))
    last = len(log) - log[::-1].index(("chunk", 8))
    kinds = [what for what, _ in log[first:last]]
    assert ("chunk", "chunk") not in zip(kinds, kinds[1:], strict=False)
    order = [number for what, number in log if what == "chunk" and number in (7, 8, 9)]
    assert order.index(7) < 4, "three turns at the most"
    # The first that came goes on in every other turn, whoever comes with less.
    assert order.index(8) > len([n for n in order if n == 9]) // 2


def test_short_prompts_share_a_turn() -> None:
    engine = Logged(make_engine(packed=False), chunk=32, seconds=0.01)
    with Batcher(engine) as batcher:
        streams = [batcher.generate(Request([5 + i, 30, 31], max_tokens=3)) for i in range(8)]
        for stream in streams:
            list(stream)
    assert ("step", 8) in engine.log or ("step", 7) in engine.log


def test_the_same_prompt_is_read_once() -> None:
    engine = Logged(make_engine(packed=False), chunk=16)
    prompt = list(range(20, 180))
    with Batcher(engine) as batcher:
        streams = [
            batcher.generate(Request(prompt, Sampling(1.0, seed=i), max_tokens=2)) for i in range(4)
        ]
        ends = [list(stream)[-1] for stream in streams]
    read = [end.prompt_tokens - end.cached_tokens for end in ends if isinstance(end, End)]
    assert sorted(read) == [1, 1, 1, 160]


@pytest.mark.parametrize("by", ["left", "close", "forgotten"])
@pytest.mark.parametrize("where", ["prompt", "line", "answer"])
def test_whoever_leaves_is_dropped_at_once(where: str, by: str) -> None:
    engine = Logged(make_engine(packed=False), chunk=4, seconds=0.01)
    prompt = [5] * 200 if where == "prompt" else [5, 6]
    left = threading.Event()
    with Batcher(engine, batch=1) as batcher:
        other = batcher.generate(Request([9, 9], Sampling(1.0, seed=1), max_tokens=250))
        if where == "line":
            next(other)
        else:
            other.close()
            until(lambda: batcher.load == (0, 0))
        stream = batcher.generate(Request(prompt, Sampling(1.0, seed=1), max_tokens=50), left)
        expected = (1, 1) if where == "line" else (1, 0)
        until(lambda: batcher.load == expected and len(engine.log) > 3)
        if by == "left":
            left.set()
        elif by == "close":
            stream.close()
        else:
            del stream
        until(lambda: batcher.load == (expected[0] - (where != "line"), 0))
        if by == "left":
            with pytest.raises(Cancelled):
                list(stream)
        if where != "line":
            seen = len(engine.log)
            time.sleep(0.05)
            assert len(engine.log) == seen
        other.close()
    assert not engine.slots._slots or not any(slot.busy for slot in engine.slots._slots)


def test_what_takes_long_is_done_by_who_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Grammars and stop strings are read in the thread of their request."""
    engine = make_engine(packed=False)
    threads = set()
    start, link = Constrainer.start, StopStrings.__init__

    def started(self: Constrainer, grammar: str) -> Constraint:
        threads.add(threading.current_thread())
        return start(self, grammar)

    def linked(self: StopStrings, stops: Iterable[str]) -> None:
        threads.add(threading.current_thread())
        link(self, stops)

    monkeypatch.setattr(Constrainer, "start", started)
    monkeypatch.setattr(StopStrings, "__init__", linked)
    with Batcher(engine) as batcher:
        request = Request([5, 6], max_tokens=9, stop=("x" * 9,), grammar=compile_choice(["fox"]))
        assert answer(batcher, request)
    assert threads == {threading.current_thread()}


# Other work


def test_calls_are_made_between_steps() -> None:
    engine = Logged(make_engine(packed=False), chunk=8, seconds=0.002)
    with Batcher(engine) as batcher:
        worker = batcher.worker
        talking = batcher.generate(Request([5, 6], Sampling(1.0, seed=1), max_tokens=200))
        next(talking)
        futures = [
            worker.submit(lambda i=i: (engine.features([f"text {i}"], [1]), i)[1]) for i in range(9)
        ]
        assert [future.result() for future in futures] == list(range(9))
        kinds = [what for what, _ in engine.log]
        assert ("features", "features") not in zip(kinds, kinds[1:], strict=False)
        with pytest.raises(ZeroDivisionError):
            worker.call(lambda: 1 / 0)
        assert worker.call(lambda: worker.call(threading.current_thread)).name == "trivium-compute"
        given_up = worker.submit(lambda: engine.features(["never"], [1]))
        given_up.cancel()
        assert len(list(talking)) > 100
    assert engine.threads == {"trivium-compute"}
    with pytest.raises(TriviumError, match="shutting down"):
        worker.submit(int)


def test_other_work_gets_half_of_the_time_at_most() -> None:
    engine = Logged(make_engine(packed=False), chunk=8)
    with Batcher(engine) as batcher:
        talking = batcher.generate(Request([5, 6], Sampling(1.0, seed=1), max_tokens=250))
        next(talking)
        start = time.monotonic()
        slow = [batcher.worker.submit(lambda: time.sleep(0.05)) for _ in range(4)]
        for future in slow:
            future.result()
        seconds = time.monotonic() - start
        assert seconds > 0.05 * (4 + 3) or batcher.load == (0, 0)
        talking.close()
        until(lambda: batcher.load == (0, 0))
        start = time.monotonic()
        for _ in range(4):
            batcher.worker.call(lambda: time.sleep(0.05))
        assert time.monotonic() - start < 0.05 * 6


def test_two_models_take_turns() -> None:
    one, other = (Logged(make_engine(packed=False), chunk=8, seconds=0.002) for _ in range(2))
    one.log = other.log
    worker = Worker()
    batchers = [Batcher(engine, worker=worker) for engine in (one, other)]
    streams = [
        batcher.generate(Request([5 + i], Sampling(1.0, seed=1), max_tokens=50))
        for i, batcher in enumerate(batchers)
    ]
    alone = answer(make_engine(packed=False), Request([5], Sampling(1.0, seed=1), max_tokens=50))
    assert list(streams[0])[:-1] == alone[:-1]
    list(streams[1])
    batchers[0].close()
    assert answer(batchers[1], Request([5], max_tokens=3))
    waiting = batchers[1].generate(Request([5], Sampling(1.0, seed=1), max_tokens=200))
    worker.close()
    with pytest.raises(TriviumError, match="shut down"):
        list(waiting)
    batchers[1].close()
    assert one.threads | other.threads == {"trivium-compute"}


def test_a_fault_of_the_batcher_itself_ends_requests_not_the_thread(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with Batcher(make_engine(packed=False)) as batcher:
        with monkeypatch.context() as broken:
            broken.setattr(Batcher, "_newcomer", lambda self: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                list(batcher.generate(Request([5], max_tokens=3)))
        assert answer(batcher, Request([5], max_tokens=3))
