"""The recipe that teaches tools, on a model that knows nothing."""

import dataclasses
import json
import signal
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from trivium import checkpoint, models
from trivium.data import IGNORE
from trivium.errors import UsageError
from trivium.language.adapters import read_adapter
from trivium.language.chat_template import ChatTemplate
from trivium.language.tokenizer import Tokenizer
from trivium.language.transformer import Transformer, TransformerConfig
from trivium.recipes.run import Run
from trivium.recipes.tool_requests.problems import read_problems
from trivium.recipes.tool_requests.replay import Reply
from trivium.recipes.tool_requests.rows import TEMPLATE, MadeRows, Maker
from trivium.recipes.tool_use import REPLIES, Config, _plain, held_out, main

REPLY = Reply((), "Hello!", "Hello, how can I help?", True)

LAYERS = 3


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tokenizer = Tokenizer.train(["What is 12 * 7? Open notes.txt. calculate expression"] * 3, 300)
    torch.manual_seed(0)
    config = TransformerConfig(
        vocab_size=tokenizer.vocab_size, context=4096, width=32, layers=LAYERS, heads=2, hidden=64
    )
    checkpoint.save(folder, Transformer(config), "transformer", config)
    tokenizer.save(folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE.read_text())
    return folder


def short(model: Path, out: Path, **settings: Any) -> Config:
    """A run of a few steps."""
    given = {"steps": 2, "length": 4096, "lot": 12, "plain": 2, "rank": 2, "skipped": 1}
    return Config(out=str(out), model=str(model), **given | settings)


def test_it_makes_an_adapter_that_the_model_takes(model: Path, tmp_path: Path) -> None:
    settings = {"steps": 4, "plain": 4, "evaluate_every": 2}
    config = short(model, tmp_path / "run", **settings)
    results = main(config)
    assert results["loss on held-out conversations"] > 0
    assert main(config) == results  # it is done
    folder = tmp_path / "run"
    base = models.load(model, precision="float32")
    adapted = models.load(model, precision="float32", adapter=folder)
    changed = {
        int(name.split(".")[1])
        for name, value in adapted.model.state_dict().items()
        if not torch.equal(value, base.model.state_dict()[name])
    }
    assert changed == set(range(1, LAYERS))
    assert read_adapter(folder, base.model.config).rank == 2
    template = ChatTemplate.from_folder(folder)
    assert template is not None and template.supports_tools


def test_it_goes_on_from_an_adapter_with_problems_of_a_file(model: Path, tmp_path: Path) -> None:
    first = short(model, tmp_path / "first")
    main(first)
    (tmp_path / "problems.jsonl").write_text(
        json.dumps({"question": "Add 3 and 4 pens.", "answer": "<<3+4=7>>7\n#### 7"})
    )
    second = dataclasses.replace(
        first,
        out=str(tmp_path / "second"),
        start=first.out,
        problems=str(tmp_path / "problems.jsonl"),
        skipped=0,
        rank=3,
        rows=2,
        lot=40,
        dropout=0.1,
        asked=0.1,
        learning_rate=1e-6,
    )
    main(second)
    loaded = models.load(model, precision="float32")
    before, after = (read_adapter(Path(run.out), loaded.model.config) for run in (first, second))
    assert (before.rank, after.rank) == (2, 3)
    assert {name.split(".")[1] for name in after.parts} == set(map(str, range(LAYERS)))
    for name in after.parts:
        change = after.delta(name)
        known = before.delta(name) if name in before.parts else torch.zeros_like(change)
        torch.testing.assert_close(change, known, rtol=0, atol=1e-4)
    maker = Maker(loaded.tokenizer, [REPLY], read_problems(second.problems), 4096)
    assert "pens." in json.dumps([c.messages for c in maker.conversations(0, 100)])


def test_an_adapter_to_go_on_from_must_fit(model: Path, tmp_path: Path) -> None:
    first = short(model, tmp_path / "first")
    main(first)
    second = dataclasses.replace(first, out=str(tmp_path / "second"), start=first.out)
    with pytest.raises(UsageError, match=r"of rank 2: rank=1 is too low"):
        main(dataclasses.replace(second, rank=1))
    with pytest.raises(UsageError, match=r"changes layers\.1\..*, which skipped= leaves"):
        main(dataclasses.replace(second, skipped=2, out=str(tmp_path / "third")))


@pytest.fixture(scope="module")
def maker(model: Path) -> Maker:
    return Maker(models.load(model).tokenizer, [REPLY], [], 4096)


def rows_of(maker: Maker, count: int = 7, place: Any = None, **more: Any) -> list[Any]:
    given: dict[str, Any] = {"rows": 2, "lot": 30, "seed": 3, "processes": 0, "source": "here"}
    batches = MadeRows(maker, **given | more)
    if place:
        batches.load(place)
    found = [(batch["ids"], batches.state()) for batch in islice(batches, count)]
    assert all(ids.shape == (2, 4096) for ids, _ in found)
    return found


def test_rows_are_the_same_whoever_makes_them(maker: Maker) -> None:
    found = rows_of(maker)
    for (ids, state), (other, there) in zip(found, rows_of(maker, processes=2), strict=True):
        assert torch.equal(ids, other) and state == there
    assert len({state["place"]["lot"] for _, state in found}) > 1
    assert len({tuple(ids.flatten().tolist()) for ids, _ in found}) == len(found)


def test_ctrl_c_is_for_the_training_alone(maker: Maker) -> None:
    batches = MadeRows(maker, rows=1, lot=1, seed=0, processes=1, source="")
    with batches._executor() as pool:
        assert pool.submit(signal.getsignal, signal.SIGINT).result() == signal.SIG_IGN


def test_rows_go_on_where_they_were(maker: Maker) -> None:
    found = rows_of(maker)
    rest = rows_of(maker, 4, found[2][1])
    assert all(torch.equal(a, b) for (a, _), (b, _) in zip(found[3:], rest, strict=True))
    with pytest.raises(UsageError, match="not those of the snapshot"):
        rows_of(maker, place=found[2][1], seed=4)


def test_two_ranks_take_turns(maker: Maker) -> None:
    found = rows_of(maker, 6)
    for rank in (0, 1):
        own = rows_of(maker, 3, rank=rank, world=2)
        for (ids, _), (same, _) in zip(own, found[rank::2], strict=True):
            assert torch.equal(ids, same)


def test_a_lot_must_fill_a_batch(maker: Maker) -> None:
    with pytest.raises(UsageError, match=r"lot=1 conversations fill 1 rows, fewer than rows=2"):
        rows_of(maker, lot=1)
    with pytest.raises(UsageError, match=r"rows=0 and lot=30 are at least 1"):
        rows_of(maker, rows=0)
    with pytest.raises(UsageError, match=r"none of 30 conversations is of 16 tokens"):
        rows_of(dataclasses.replace(maker, length=16))


def test_what_is_asked_is_foretold_with_a_weight_of_its_own(maker: Maker) -> None:
    plain = maker.lot("3/0", 30)
    rows = dataclasses.replace(maker, asked=0.25).lot("3/0", 30)
    ids, targets, segments, weights = (
        rows[name] for name in ("ids", "targets", "segments", "weights")
    )
    learnt = plain["targets"] != IGNORE
    assert (targets[learnt] == plain["targets"][learnt]).all() and (weights[learnt] == 1).all()
    further = (weights > 0) & ~learnt
    assert further.any() and (weights[further] == 0.25).all()
    row, place = further.nonzero()
    assert (targets[further] == ids[row, place + 1]).all()
    assert (segments[row, place] == segments[row, place + 1]).all()
    assert (segments[further] >= 0).all()  # the beginning that texts share is learnt by none
    assert ((weights == 0) == (targets == IGNORE)).all()
    batches = MadeRows(
        dataclasses.replace(maker, asked=0.25), rows=1, lot=30, seed=3, processes=0, source=""
    )
    assert batches.tensors(None)["weights"].sum() == 0
    assert next(iter(batches))["weights"].dtype == torch.float32


def test_whole_answers_are_counted_as_if_they_were_chosen(model: Path, maker: Maker) -> None:
    """Some texts are made to be what the model says; bfloat16 may choose otherwise in a few."""
    loaded = models.load(model, precision="float32")
    rows = list(maker.rows(maker.conversations(5, 20), seed=None, ahead=0))
    with torch.no_grad():
        for row in rows:
            said = loaded.model.logits(
                loaded.model.features(row["ids"], segments=row["segments"])
            ).argmax(-1)
            chosen = (row["targets"] != IGNORE) & (row["segments"] % 3 == 1)
            row["targets"] = torch.where(chosen, said, row["targets"])
    texts = [(row, n) for row in rows for n in row["segments"].unique().tolist() if n >= 0]
    taught = [n for row, n in texts if ((row["segments"] == n) & (row["targets"] != IGNORE)).any()]
    whole = sum(n % 3 == 1 for n in taught) / len(taught)
    found = held_out(loaded.model, rows)
    assert 0 < whole < 1 and found["held_out_whole"] == pytest.approx(whole, abs=0.1)
    assert found["held_out_loss"] > 0


def test_something_held_out_must_fit_a_row(model: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"held_out=3: none of them is of 16 tokens or less"):
        main(short(model, tmp_path / "run", length=16, held_out=3))


def test_the_plain_answers_are_kept(model: Path, tmp_path: Path) -> None:
    """A run that goes on does not ask the untrained model again, unless some are missing."""
    config = Config(out=str(tmp_path / "run"), model=str(model), plain=8)
    run = Run.start(config)
    found = _plain(run, config, model)
    kept = tmp_path / "run" / REPLIES
    assert len(found) == 8 and sum(bool(reply.past) for reply in found) == 1
    assert _plain(run, config, tmp_path / "no model is needed") == found
    other = dataclasses.replace(config, out=str(tmp_path / "other"), replies=str(kept))
    assert _plain(Run.start(other), other, tmp_path / "no model is needed") == found
    assert (tmp_path / "other" / REPLIES).read_text() == kept.read_text()
    missing = dataclasses.replace(other, replies=str(tmp_path / "none.jsonl"))
    with pytest.raises(UsageError, match=r"none\.jsonl: no such file"):
        _plain(run, missing, model)
    kept.write_text("".join(kept.read_text().splitlines(keepends=True)[:-1]) + '{"past": [')
    assert _plain(run, config, model) == found


def test_the_dry_run_writes_nothing(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    config = Config(out=str(out), model=str(model), dry_run=True, length=4096, skipped=1, rank=2)
    assert main(config)
    assert not out.exists()


@pytest.mark.parametrize("skipped", [LAYERS, LAYERS + 1, -1])
def test_some_blocks_must_be_left(model: Path, tmp_path: Path, skipped: int) -> None:
    config = Config(out=str(tmp_path / "run"), model=str(model), dry_run=True, skipped=skipped)
    with pytest.raises(UsageError, match=f"skipped={skipped}: the model has {LAYERS} blocks"):
        main(config)
