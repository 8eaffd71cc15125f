"""The recipes of assistants, each run to its end with a tiny model, and what they leave."""

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from trivium.cli import main
from trivium.errors import NotFound, UsageError
from trivium.intervals import wilson
from trivium.language.alignment.experience import verified
from trivium.language.alignment.reward import RewardModel
from trivium.language.alignment.rollouts import Answer
from trivium.language.engine import Engine
from trivium.language.generation import End, Request
from trivium.language.pretrained import load_pretrained, load_trainable
from trivium.models import load_checkpoint
from trivium.recipes import dpo, exercises, from_rewards, prompts, ranked, report, sft
from trivium.recipes.from_rewards import PolicyConfig

SMALL: dict[str, dict[str, Any]] = {
    "sft": {"steps": 4, "evaluate_every": 2},
    "reward": {"steps": 2, "base_steps": 2},
    "dpo": {"steps": 2, "base_steps": 2},
    "ppo": {"rounds": 2, "prompts": 4, "minibatch": 4, "rows": 2, "base_steps": 2},
    "grpo": {"rounds": 2, "prompts": 2, "answers": 4, "minibatch": 8, "rows": 4, "base_steps": 2},
}
POLICY = {"max_tokens": 6, "held_out": 4}


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name, count in (
        (sft, "MADE", 120),
        (sft, "ASKED", 4),
        (ranked, "MADE", 60),
        (ranked, "HELD", 8),
        (dpo, "ASKED", 4),
        (from_rewards, "MADE", 40),
    ):
        monkeypatch.setattr(module, name, count)
    monkeypatch.setattr(report, "save_png", lambda *_: None)  # a second each


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny assistant that sft made."""
    folder = tmp_path_factory.mktemp("base") / "sft"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sft, "MADE", 120)
        patch.setattr(sft, "ASKED", 4)
        sft.main(sft.Config(model="tiny", out=str(folder), device="cpu", steps=4))
    return folder


def run(name: str, folder: Path, **settings: Any) -> dict[str, Any]:
    module = importlib.import_module(f"trivium.recipes.{name}")
    more = POLICY if issubclass(module.Config, PolicyConfig) else {}
    config = module.Config(out=str(folder), device="cpu", **{**SMALL[name], **more, **settings})
    results: dict[str, Any] = module.main(config)
    return results


def says(folder: Path) -> str:
    """What the model in a run's folder answers."""
    loaded = load_pretrained(folder, device="cpu", precision="float32")
    assert loaded.template is not None
    ids = loaded.template.encode(loaded.tokenizer, [{"role": "user", "content": "What is 1 + 1?"}])
    events = list(Engine(loaded).generate(Request(ids, max_tokens=5)))
    assert isinstance(events[-1], End)
    return "".join(event.text for event in events)


@pytest.mark.parametrize("name", SMALL)
def test_a_run_with_nothing_given(name: str, tmp_path: Path) -> None:
    """A tiny model, made-up data, no network; a model is left that can be used, and the same
    command again gives the same results at once."""
    folder = tmp_path / name
    results = run(name, folder, model="tiny")
    assert results and run(name, folder, model="tiny") == results
    assert (folder / "report.html").is_file() and (folder / "README.md").is_file()
    if name == "reward":
        assert isinstance(load_checkpoint(folder), RewardModel)
        assert 0 <= results["calibration error"] <= 1
    else:
        says(folder)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    if name in ("ppo", "grpo"):
        assert sum("reward" in row and "kl" in row for row in rows) == 2
        assert "reward of drawn answers, last rounds" in results


@pytest.mark.parametrize("name", ["sft", "dpo", "ppo", "grpo"])
def test_an_adapter_names_the_model_it_is_for(name: str, base: Path, tmp_path: Path) -> None:
    folder = tmp_path / name
    run(name, folder, model=str(base), rank=2, learning_rate=1e-2)
    assert not (folder / "config.json").exists()
    record = json.loads((folder / "adapter_config.json").read_text())
    assert record["r"] == 2 and Path(record["base_model_name_or_path"]) == base.resolve()
    says(folder)
    before, after = load_trainable(base).model, load_trainable(folder).model
    changed = [
        name
        for name, tensor in after.state_dict().items()
        if not tensor.equal(before.state_dict()[name])
    ]
    assert (changed or name == "ppo") and all(".attention." in n or ".mlp." in n for n in changed)


def test_an_adapter_is_shown_and_exported(base: Path, tmp_path: Path) -> None:
    folder, out = tmp_path / "sft", tmp_path / "whole"
    run("sft", folder, model=str(base), rank=2, learning_rate=1e-2)
    (folder / "recipe.json").unlink()  # as an adapter from somewhere else
    shown = CliRunner().invoke(main, ["show", str(folder)])
    assert f"LoRA adapter for {base.resolve()}" in shown.stdout
    assert CliRunner().invoke(main, ["export", str(folder), str(out)]).exit_code == 0
    assert says(out) == says(folder)


def test_the_ways_of_the_pipeline(base: Path, tmp_path: Path) -> None:
    """sft, then a reward model of rankings by hand, then ppo with that reward on prompts without
    answers."""
    rankings = tmp_path / "ranked.jsonl"
    lines = [
        {
            "prompt": f"What is {i} + 1?",
            "responses": ["yes", f"{i + 1}", "no"],
            "ranking": [1, 0, 2],
        }
        for i in range(8)
    ]
    rankings.write_text("".join(json.dumps(line) + "\n" for line in lines))
    judge = tmp_path / "reward"
    run("reward", judge, model=str(base), data=str(rankings), ranking="list", held_out=0.3)
    asked = tmp_path / "prompts.jsonl"
    asked.write_text("".join(json.dumps({"prompt": f"{i}?"}) + "\n" for i in range(12)))
    with pytest.raises(UsageError, match="12 of 12 prompts have no 'answer'"):
        run("ppo", tmp_path / "no", model=str(base), data=str(asked))
    results = run("ppo", tmp_path / "p", model=str(base), data=str(asked), reward=str(judge))
    assert "held-out reward" in results
    with pytest.raises(UsageError, match="is no reward model"):
        run("ppo", tmp_path / "q", model=str(base), data=str(asked), reward=str(base))


def test_the_default_model_is_missed_aloud(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("sft", tmp_path / "run", steps=2)
    assert "model: tiny (smollm2-135m-instruct is not here" in capsys.readouterr().err


def test_a_dry_run_writes_nothing(base: Path, tmp_path: Path) -> None:
    for name in ("reward", "grpo"):
        settings = {"dry_run": True, "model": str(base), "rank": 2}
        results = run(name, tmp_path / name, **settings)
        assert results["memory_bytes"] > 0 and results["step_seconds"] > 0
        assert not (tmp_path / name).exists()


# -- what is wrong with the data ------------------------------------------------------------------

BROKEN = {
    "sft": ('{"messages": [{"role": "user", "content": "a"}]}', "no turn of the assistant"),
    "reward": ('{"prompt": "a", "completion": "b"}', "it needs 'chosen' and 'rejected'"),
    "dpo": ('{"prompt": "a", "chosen": "b", "rejected":', "not valid JSON"),
    "ppo": ('{"text": "a"}', "it needs one of 'prompt'"),
    "grpo": ('{"prompt": "a", "answer": "seven"}', "'seven' is no number"),
}
GOOD = {
    "sft": {"prompt": "a", "completion": "b"},
    "reward": {"prompt": "a", "chosen": "b", "rejected": "c"},
    "dpo": {"prompt": "a", "chosen": "b", "rejected": "c"},
    "ppo": {"prompt": "a", "answer": "1"},
    "grpo": {"prompt": "a", "answer": "1"},
}


@pytest.mark.parametrize("name", SMALL)
def test_a_broken_line_is_named(name: str, base: Path, tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    good = [json.dumps({**GOOD[name], "prompt": f"question {i}"}) for i in range(6)]
    line, message = BROKEN[name]
    data.write_text("\n".join([*good, line, *good]) + "\n")
    with pytest.raises(UsageError, match=message) as raised:
        run(name, tmp_path / "run", model=str(base), data=str(data))
    assert "data.jsonl, line 7: " in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize("name", SMALL)
def test_data_that_are_not_there(name: str, base: Path, tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        run(name, tmp_path / "run", model=str(base), data=str(tmp_path / "no.jsonl"))
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(UsageError, match="is empty"):
        run(name, tmp_path / "run2", model=str(base), data=str(tmp_path / "empty.jsonl"))


def test_a_sample_longer_than_a_row_is_named(base: Path, tmp_path: Path) -> None:
    data = tmp_path / "long.jsonl"
    records = [{"prompt": f"{i}", "completion": "word " * (200 if i == 3 else 1)} for i in range(8)]
    data.write_text("".join(json.dumps(record) + "\n" for record in records))
    with pytest.raises(UsageError, match=r"long.jsonl, line 4: [\d,]+ tokens, more than the 129"):
        run("sft", tmp_path / "run", model=str(base), data=str(data), held_out=0.2)
    results = run(
        "sft", tmp_path / "cut", model=str(base), data=str(data), too_long="drop", held_out=0.2
    )
    assert results["conversations left out"] >= 1


def test_something_held_out_must_fit_a_row(base: Path, tmp_path: Path) -> None:
    data = tmp_path / "long.jsonl"
    records = [{"prompt": f"{i}", "completion": "word " * 200} for i in range(8)]
    data.write_text("".join(json.dumps(record) + "\n" for record in records))
    with pytest.raises(UsageError, match=r"long.jsonl: nothing that fits a row of 128 tokens"):
        run("sft", tmp_path / "run", model=str(base), data=str(data), held_out=0.2)


def test_rounds_that_cannot_be_cut_up(base: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="must be a multiple of minibatch"):
        run("grpo", tmp_path, model=str(base), prompts=3, minibatch=8)


# -- exercises and prompts ------------------------------------------------------------------------


def test_exercises_are_right_and_repeatable() -> None:
    items = exercises.exercises(400, 3)
    assert items == exercises.exercises(400, 3) != exercises.exercises(400, 4)
    asked = exercises.prompts(items)
    answers = [Answer([], item.reply, True) for item in items]
    assert verified(asked, answers) == [1.0] * 400
    assert {item.check for item in items} == {"number", "text"}
    for record in exercises.preferences(items, 0):
        best = record["responses"][record["ranks"].index(0)][0]["content"]
        assert any(item.reply == best for item in items)
        assert sorted(record["ranks"]) == list(range(len(record["responses"])))


def test_prompts_keep_their_messages(tmp_path: Path) -> None:
    data = tmp_path / "p.jsonl"
    record = {"question": "大阪?", "system": "Be brief.", "answer": 7}
    data.write_text(json.dumps(record, ensure_ascii=False) + "\n")
    (found,) = prompts.prompts(str(data))
    assert [m["role"] for m in found.messages] == ["system", "user"] and found.answer == "7"


@pytest.mark.parametrize(("right", "count"), [(0, 0), (0, 10), (10, 10), (48, 100)])
def test_intervals_hold_the_share(right: int, count: int) -> None:
    low, high = wilson(right, count)
    assert 0 <= low <= (right / count if count else 0.5) <= high <= 1
    if (right, count) == (48, 100):  # scipy's binomtest(48, 100).proportion_ci(method="wilson")
        assert (low, high) == pytest.approx((0.3846, 0.5768), abs=1e-4)
