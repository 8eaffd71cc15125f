"""Batches: every token once, packed without mixing, resumed to the bit, split between ranks."""

import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.data.conftest import as_bytes, some_text
from torch import Tensor

from trivium import data
from trivium.data import IGNORE, Batch, Batches, order, packing, textfiles
from trivium.data.packing import best_fit
from trivium.errors import UsageError

END = 256
ROW = 24


def render(messages: Sequence[dict[str, Any]], tools: Any) -> tuple[list[int], list[bool]]:
    ids: list[int] = []
    learnt: list[bool] = []
    for message in messages:
        own = list(message["content"].encode())
        mine = message["role"] == "assistant" and message.get("weight", 1) == 1
        ids += [END, *own]
        learnt += [False] + [mine] * len(own)
    return [*ids, END], [*learnt, messages[-1]["role"] == "assistant"]


def turns(*texts: str) -> list[dict[str, str]]:
    roles = itertools.cycle(["user", "assistant"])
    return [{"role": role, "content": text} for role, text in zip(roles, texts, strict=False)]


@pytest.fixture(scope="module", autouse=True)
def small_blocks() -> Iterator[None]:
    """Blocks and pools so small that little data has many."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(textfiles, "SMALLEST", 100)
        patch.setattr(textfiles, "LARGER", 100)
        patch.setattr(order, "POOL", 1000)
        patch.setattr(packing, "GROUP", 100)
        yield


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory, small_blocks: None) -> Callable[[str], Any]:
    folder = tmp_path_factory.mktemp("sources")
    (folder / "texts").mkdir()
    (folder / "texts/long.txt").write_text(some_text(0, 700))
    (folder / "texts/short.txt").write_text("short")
    lines = [json.dumps(some_text(seed, seed % 9)) for seed in range(90)]
    (folder / "texts/lines.jsonl").write_text("\n".join(lines))
    chats = [{"messages": turns(f"{i}", "y" * (i % 17), "z")} for i in range(1, 90)]
    (folder / "chats.jsonl").write_text("\n".join(map(json.dumps, chats)))
    pairs: list[Any] = [
        {"prompt": f"{i}", "chosen": "c" * (1 + i % 9), "rejected": "r" * (1 + i % 7)}
        for i in range(60)
    ]
    pairs += [{"prompt": "k", "responses": ["a", "b", "c"], "scores": [1, 3, 1]}] * 9
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    opened = {
        "tokens": data.documents(folder / "texts"),
        "chats": data.conversations(folder / "chats.jsonl"),
        "pairs": data.preferences(folder / "pairs.jsonl"),
    }
    return opened.__getitem__


@pytest.fixture(scope="module")
def make(sources: Callable[[str], Any]) -> Callable[..., Any]:
    def build(kind: str, *, rows: int = 3, **more: Any) -> Any:
        if kind == "mixture":
            tokens, chats = (build(part, rows=rows, **more) for part in ("tokens", "chats"))
            return data.Mixture([(tokens, 3), (chats, 1)])
        if kind == "pairs":
            return data.PreferenceBatches(sources(kind), render, rows=rows, length=ROW, **more)
        if kind.startswith("chats"):
            packed = kind == "chats"
            corpus = sources("chats")
            return data.ConversationBatches(
                corpus, render, rows=rows, length=ROW, filler=END, packed=packed, **more
            )
        corpus, packed = sources("tokens"), kind == "tokens"
        return data.TokenBatches(
            corpus, as_bytes, rows=rows, length=ROW, end=END, packed=packed, **more
        )

    return build


KINDS = ("tokens", "tokens alone", "chats", "chats alone", "pairs", "mixture")


def equal(ours: Sequence[Batch], theirs: Sequence[Batch]) -> bool:
    return len(ours) == len(theirs) and all(
        a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
        for a, b in zip(ours, theirs, strict=True)
    )


@pytest.fixture(scope="module")
def whole(make: Callable[..., Any]) -> Callable[[str], list[Batch]]:
    """All batches of two epochs, made without a thread."""
    made = {kind: list(make(kind, epochs=2, ahead=0)) for kind in KINDS}
    return made.__getitem__


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(KINDS), st.floats(0, 1), st.integers(1, 4), st.integers(1, 4), st.booleans())
def test_resumed_equals_uninterrupted_on_any_number_of_ranks(
    make: Callable[..., Any],
    whole: Callable[[str], list[Batch]],
    kind: str,
    where: float,
    before: int,
    after: int,
    thread: bool,
) -> None:
    wanted = whole(kind)
    rounds = int(where * (len(wanted) // before))
    first = make(kind, epochs=2, world=before, rank=before - 1, ahead=2 * thread)
    got = list(itertools.islice(first, rounds))
    assert equal(got, wanted[before - 1 : before * rounds : before])
    state = json.loads(json.dumps(first.state()))
    for rank in range(after):
        second = make(kind, epochs=2, world=after, rank=rank, ahead=2 * thread)
        second.load(state)
        rest = list(second)
        left = wanted[before * rounds :]
        assert equal(rest[: len(left[rank::after])], left[rank::after])
        assert len(rest) == -(-len(left) // after)  # all ranks have as many
        for batch in rest[len(left[rank::after]) :]:
            assert (batch["targets"] == IGNORE).all()


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_object_goes_on(
    make: Callable[..., Any], whole: Callable[[str], list[Batch]], kind: str
) -> None:
    batches = make(kind, epochs=2)
    begun = batches.state()
    got = [batch for _ in range(3) for batch in itertools.islice(batches, 2)]
    assert equal([*got, *batches], whole(kind))
    assert list(batches) == []
    batches.load(begun)
    assert equal(list(batches), whole(kind))


def documents_in(batches: Sequence[Batch]) -> list[tuple[list[int], list[int]]]:
    """(ids, targets) of each segment; checks how rows are made."""
    found = []
    for batch in batches:
        for ids, targets, segments, positions in zip(
            *(batch[name] for name in ("ids", "targets", "segments", "positions")), strict=True
        ):
            assert ids.shape == (ROW,) and ids.dtype == torch.int64
            filled = int((segments >= 0).sum())
            assert (segments[:filled].diff() >= 0).all() and (segments[filled:] == -1).all()
            assert (targets[filled:] == IGNORE).all() and (positions < ROW).all()
            for number in range(int(segments.max()) + 1):
                own = segments == number
                assert positions[own].tolist() == list(range(int(own.sum())))
                found.append((ids[own].tolist(), targets[own].tolist()))
    return found


def joined(segments: Sequence[tuple[list[int], list[int]]]) -> list[int]:
    """The stream of tokens: each is a target once."""
    for ids, targets in segments:
        assert ids[1:] == targets[:-1]
    return [token for _, targets in segments for token in targets]


@pytest.mark.parametrize("kind", ["tokens", "tokens alone"])
def test_every_token_of_a_text_is_learnt_once(
    make: Callable[..., Any], sources: Callable[[str], Any], kind: str
) -> None:
    batches = list(make(kind, epochs=1))
    texts = list(sources("tokens").found())
    got = joined(documents_in(batches))
    # A part that goes on in another block has one transition less.
    counted = sum(len(t.item.encode()) - (not t.starts) + t.ends for t in texts)
    assert len(got) == counted
    assert got.count(END) == sum(found.ends for found in texts)
    if kind == "tokens":  # full rows, but for the last one of each lane
        lanes = order.lanes_of(sources("tokens"))
        missing = sum(int((batch["targets"] == IGNORE).sum()) for batch in batches)
        assert missing <= (lanes + 3) * ROW and lanes == 2


def test_documents_in_the_order_of_the_files() -> None:
    texts = [some_text(seed, 5 + seed) for seed in range(20)]
    batches = data.TokenBatches(
        data.documents(texts),
        as_bytes,
        rows=2,
        length=ROW,
        begin=1,
        end=END,
        seed=None,
        epochs=2,
        ahead=0,
    )
    segments = documents_in(list(batches))
    wanted = [token for text in texts for token in [*text.encode(), END]]
    assert joined(segments) == wanted * 2
    assert sum(ids[0] == 1 for ids, _ in segments) == 40


def test_conversations_are_whole_and_each_is_there_once(
    make: Callable[..., Any], sources: Callable[[str], Any]
) -> None:
    packed, alone = (list(make(kind, epochs=1)) for kind in ("chats", "chats alone"))
    wanted = []
    for found in sources("chats"):
        ids, learnt = render(*found)
        targets = [i if mine else IGNORE for i, mine in zip(ids[1:], learnt[1:], strict=True)]
        wanted.append((ids[:-1], targets))
    wanted = [sample for sample in wanted if any(t != IGNORE for t in sample[1])]
    for batches in (packed, alone):
        assert sorted(documents_in(batches)) == sorted(wanted)
    assert len(packed) < 0.8 * len(alone)


def test_conversations_that_begin_alike_share_rows() -> None:
    """With the beginning put before each text, they are the samples that stand alone."""
    tools = [{"type": "function", "function": {"name": name}} for name in ("a", "b")]
    begins = {name: [{"role": "system", "content": name * 8}] for name in "xyz"}

    def chat(number: int) -> dict[str, Any]:
        begin = begins["xyz"[number % 3]] if number % 4 else []
        return {"messages": [*begin, *turns(f"q{number}", f"a{number}")], "tools": tools[:1]}

    corpus = data.conversations([chat(number) for number in range(40)])

    def batches(shared: bool) -> list[Batch]:
        made = data.ConversationBatches(
            corpus, render, rows=2, length=ROW, filler=END, shared=shared, epochs=1
        )
        return list(made)

    shared, alone = batches(True), batches(False)
    samples = []
    for batch in shared:
        for ids, targets, segments, positions in zip(
            *(batch[k] for k in ("ids", "targets", "segments", "positions")), strict=True
        ):
            trunk = ids[segments == packing.SHARED].tolist()
            assert bool((targets[segments == packing.SHARED] == IGNORE).all())
            for number in set(segments.tolist()) - {packing.SHARED, -1}:
                own = segments == number
                samples.append(
                    ([*trunk, *ids[own].tolist()], [IGNORE] * len(trunk) + targets[own].tolist())
                )
                length = int(own.sum())
                assert positions[own].tolist() == [*range(len(trunk), len(trunk) + length)]
    assert sorted(samples) == sorted(documents_in(alone))
    assert len(shared) < len(alone)


def test_orders_differ_by_seed_and_epoch(make: Callable[..., Any]) -> None:
    for kind in ("tokens", "chats", "pairs"):
        first, again, other, none = (
            list(make(kind, epochs=2, seed=seed)) for seed in (1, 1, 2, None)
        )
        assert equal(first, again)
        assert not equal(first[:3], other[:3]) and not equal(first[:3], none[:3])
        half = len(first) // 2
        assert not equal(first[:3], first[half : half + 3])


@pytest.mark.parametrize(("policy", "kept"), [("truncate", 2), ("drop", 1)])
def test_too_long(policy: Any, kept: int) -> None:
    chats = [
        {"messages": turns("a", "b")},
        {"messages": turns("a", "b" * 80)},
        {"messages": turns("a" * 80, "b")},
    ]
    corpus = data.conversations(chats, name="chats")

    def batches(**more: Any) -> data.ConversationBatches:
        return data.ConversationBatches(corpus, render, rows=1, length=ROW, seed=None, **more)

    with pytest.raises(UsageError, match="chats, record 2: 84 tokens, more than the 25 that fit"):
        list(batches(epochs=1))
    made = batches(epochs=2, too_long=policy)
    assert len(documents_in(list(made))) == 2 * kept
    assert (made.dropped, made.truncated) == (2 * (3 - kept), 2 * (kept - 1))
    again = batches(epochs=2, too_long=policy)
    again.load(made.state())
    assert list(again) == [] and (again.dropped, again.truncated) == (made.dropped, made.truncated)


def test_preferences(make: Callable[..., Any], sources: Callable[[str], Any]) -> None:
    batches = list(make("pairs", epochs=1))
    wanted = []
    for found in sources("pairs"):
        for response, rank in zip(found.responses, found.ranks, strict=True):
            ids, _ = render([*found.prompt, *response], None)
            prompt = len(found.prompt[0]["content"]) + 2
            wanted.append((rank, ids, [IGNORE] * (prompt - 1) + ids[prompt:] + [IGNORE]))
    got = []
    for batch in batches:
        ranks, groups = batch["ranks"], batch["groups"]
        assert batch["ids"].shape[1] == ROW  # of 32, or the largest
        assert groups.unique().tolist() == list(range(int(groups.max()) + 1)) and groups.max() < 3
        for group in groups.unique():
            assert ranks[groups == group].diff().ge(0).all()
        for rank, ids, targets, end in zip(
            ranks.tolist(), batch["ids"], batch["targets"], batch["ends"].tolist(), strict=True
        ):
            got.append((rank, ids[: end + 1].tolist(), targets[: end + 1].tolist()))
            assert (targets[end + 1 :] == IGNORE).all()
    assert sorted(got) == sorted(wanted)


def test_only_the_reply_is_learnt_not_the_turns_before_it() -> None:
    pair = {"prompt": turns("a", "b", "c"), "chosen": "dd", "rejected": "e"}
    corpus = data.preferences([pair])
    (batch,) = data.PreferenceBatches(corpus, render, rows=4, length=ROW, epochs=1)
    assert [[t for t in row if t != IGNORE] for row in batch["targets"].tolist()] == [
        [*b"dd", END],
        [*b"e", END],
    ]


def test_a_mixture_has_its_shares(make: Callable[..., Any]) -> None:
    batches = list(itertools.islice(make("mixture", rows=4), 50))
    for batch in batches:
        assert batch["parts"].tolist().count(1) == 1  # a quarter of each four rows
    parts = torch.cat([batch["parts"] for batch in batches])
    rows: dict[int, list[Tensor]] = {0: [], 1: []}
    for batch in batches:
        for part, ids in zip(batch["parts"].tolist(), batch["ids"], strict=True):
            rows[part].append(ids)
    for part, kind in enumerate(["tokens", "chats"]):
        alone = list(itertools.islice(make(kind, rows=1), len(rows[part])))
        assert all(torch.equal(a, b["ids"][0]) for a, b in zip(rows[part], alone, strict=True))
    assert parts.sum() == 50


def test_broken_records_are_counted_once(tmp_path: Path) -> None:
    good = json.dumps({"messages": turns("a", "b")})
    path = tmp_path / "chats.jsonl"
    path.write_text(f"{good}\n{{\n{json.dumps({'messages': turns('a', 'no!')})}\n")

    def picky(messages: Sequence[dict[str, Any]], tools: Any) -> tuple[list[int], list[bool]]:
        if messages[1]["content"] == "no!":
            raise UsageError("the template refuses it")
        return render(messages, tools)

    def batches(skip: bool) -> Batches:
        corpus = data.conversations(path, skip_broken=skip)
        made = data.ConversationBatches(corpus, picky, rows=1, length=ROW, epochs=3, seed=None)
        made.corpus = corpus  # type: ignore[attr-defined]
        return made

    with pytest.raises(UsageError, match=r"chats\.jsonl, line 2: not valid JSON"):
        list(batches(False))
    made = batches(True)
    assert len(list(made)) == 3
    corpus = made.corpus  # type: ignore[attr-defined]
    assert corpus.broken == 2 and "line 3: the template refuses it" in corpus.first_broken[1]


def test_nothing_to_learn_is_said_and_not_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "empty.jsonl"
    path.write_text('""\n' * 500)
    with pytest.raises(UsageError, match="holds nothing to learn from"):
        list(data.TokenBatches(data.documents(path), as_bytes, rows=1, length=9, end=END))
    chats = data.conversations([{"messages": turns("a" * 80, "b")}])
    pairs = data.preferences([{"prompt": "a" * 80, "chosen": "b", "rejected": "c"}])
    for kind, corpus in ((data.ConversationBatches, chats), (data.PreferenceBatches, pairs)):
        with pytest.raises(UsageError, match="no record is left that can be learnt from"):
            list(kind(corpus, render, rows=1, length=9, too_long="drop"))  # type: ignore[operator]


def test_a_state_fits_its_own_data_only(make: Callable[..., Any]) -> None:
    state = make("tokens").state()
    with pytest.raises(UsageError, match="not those of the snapshot"):
        make("tokens", seed=1).load(state)
    with pytest.raises(UsageError, match="not those of the snapshot"):
        make("chats").load(state)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 50), max_size=80), st.integers(1, 60))
def test_best_fit(sizes: list[int], room: int) -> None:
    rows = best_fit(sizes, room)
    assert sorted(i for row in rows for i in row) == list(range(len(sizes)))
    assert all(len(row) == 1 or sum(sizes[i] for i in row) <= room for row in rows)
    # No two rows that have space left could be one.
    sums = sorted(s for row in rows if (s := sum(sizes[i] for i in row)) <= room)
    assert len(sums) < 2 or sums[0] + sums[1] > room


def test_orders_stay_the_same_for_ever() -> None:
    assert order.drawn(8, 0, 0).tolist() == [3, 2, 1, 6, 0, 7, 4, 5]
    assert order.drawn(5, None).tolist() == [0, 1, 2, 3, 4]
    assert sorted(order.drawn(1000, -3, 7)) == list(range(1000))
    assert not np.array_equal(order.drawn(50, 0, 1), order.drawn(50, 0, 2))
