"""`train`, and `show` of a run: listing, help, completion, errors, results, Ctrl-C."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest
from click.shell_completion import ShellComplete
from click.testing import CliRunner, Result

from trivium import cli
from trivium.recipes import RECIPES

TINY = Path(__file__).parents[1] / "recipes/tiny.py"


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TINY", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # its pictures take long
    return tmp_path


def call(*arguments: str) -> Result:
    return CliRunner().invoke(cli.main, list(arguments))


def test_the_list_has_a_line_for_each_recipe() -> None:
    lines = call("train", "--list").stdout.splitlines()
    assert [line.split(maxsplit=1) for line in lines[1:]] == [[*pair] for pair in RECIPES.items()]
    records = json.loads(call("train", "--list", "--json").stdout)
    assert set(records) == set(RECIPES)
    assert all(record["settings"][0]["comment"] for record in records.values())


@pytest.mark.parametrize("arguments", [["--list"], ["gpt", "--help"], ["--help"]])
def test_listing_and_help_are_light(arguments: list[str]) -> None:
    script = f"from trivium.cli import main; main({['train', *arguments]}, standalone_mode=False)"
    script += "\nimport sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert {"torch", "numpy", "rich", "matplotlib"} & set(done.stdout.split()) == set()


def test_the_help_of_a_recipe_tells_its_settings() -> None:
    said = call("train", "--out", "gpt", str(TINY), "--help").stdout
    assert "Settings of tiny (key=value):" in said
    assert "learning_rate=0.1 at its peak [number]" in " ".join(said.split())
    assert "dry_run=no" in said and "[yes | no]" in said
    assert "Settings of" not in call("train", "--help").stdout


@pytest.mark.parametrize(
    "arguments, message, code",
    [
        ([], "name a recipe: `trivium train --list` shows all", 2),
        (["gtp"], "no recipe 'gtp'; did you mean gpt?", 4),
        (["gtp", "--help"], "no recipe 'gtp'; did you mean gpt?", 4),
        ([str(TINY), "--steps", "3"], "no option --steps: a setting is written steps=VALUE", 2),
        ([str(TINY), "--nonsense"], "No such option", 2),
        ([str(TINY), "stesp=3"], "the recipe has no setting 'stesp'; did you mean steps?", 2),
        ([str(TINY), "steps=-1"], "steps is between 0 and", 2),
        ([str(TINY), "device=gpu"], "device 'gpu' cannot be used here", 2),
        (["./none.py"], "no such recipe: ./none.py is no file and no folder of a run", 4),
        (["."], ". is no folder of a run: it has no recipe.json", 4),
        (["/dev/null"], "no such recipe: /dev/null is no file", 4),
    ],
)
def test_errors(arguments: list[str], message: str, code: int) -> None:
    result = call("train", *arguments)
    assert result.exit_code == code, result.output
    said = [line for line in result.stderr.splitlines() if not line.startswith("training data:")]
    assert len(said) == 1 and said[0].startswith(f"trivium: {message}")


def test_results_are_on_stdout_and_the_rest_is_not(place: Path) -> None:
    result = call("train", str(TINY), "--out", "here")
    assert result.exit_code == 0, result.output
    slope, nothing, size = result.stdout.splitlines()
    assert slope.startswith("slope    0.") and nothing == "nothing  not a number"
    assert size == "size     1.5 kB"
    assert "step 1 of 6" in result.stderr
    again = call("train", str(TINY), "--out", "here", "--json")
    assert set(json.loads(again.stdout)) == {"slope", "nothing", "size_bytes"}
    assert "here is done already" in again.stderr
    fresh = call("train", str(TINY), "steps=2", "--out", "here", "--fresh")
    assert fresh.exit_code == 0 and (place / "here.old-1").is_dir()


def test_a_dry_run_prints_a_table(place: Path) -> None:
    result = call("train", str(TINY), "--dry-run")
    assert result.exit_code == 0, result.output
    rows = dict(line.rsplit("  ", 1) for line in result.stdout.splitlines())
    found = {key.strip(): value.strip() for key, value in rows.items()}
    assert found["weights"] == "8 B" and found["optimizer"] == "16 B"
    assert {"activations", "memory", "step", "all steps"} <= set(found)
    assert list(place.iterdir()) == []


def test_show_prints_the_card(place: Path) -> None:
    call("train", str(TINY), "--out", "here")
    said = call("show", "here")
    assert said.stdout.startswith("# here\n\nFit a line; a recipe of the tests.\n")
    assert "PSF-2.0" in said.stdout and "library_name" not in said.stdout
    assert json.loads(call("show", "here", "--json").stdout)["done"] is True
    card = place / "here/README.md"
    card.write_text(card.read_text() + "\x1b[2Jcleared")
    assert "\x1b" not in call("show", "here").stdout


def test_a_recipe_that_returns_no_results(place: Path) -> None:
    text = TINY.read_text()
    (place / "mine.py").write_text(text[: text.index("def main")] + "def main(config): return 3\n")
    result = call("train", "mine.py")
    assert result.exit_code == 2 and "main(config) returns 3, not its results" in result.stderr


def test_a_folder_names_no_file_to_run(place: Path) -> None:
    (place / "evil.py").write_text("open('ran', 'w')")
    (place / "x").mkdir()
    record = {"recipe": "evil", "source": str(place / "evil.py"), "config": {}}
    (place / "x/recipe.json").write_text(json.dumps(record))
    result = call("train", "x")
    assert result.exit_code == 2 and "made by a recipe of its own" in result.stderr
    assert not (place / "ran").exists()


def test_ctrl_c_leaves_with_130_and_the_command_goes_on(place: Path) -> None:
    command = [sys.executable, "-m", "trivium", "train", str(TINY), "steps=100k", "save_every=0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=place) as process:
        log = place / "runs/tiny/metrics.jsonl"
        for _ in range(600):
            if log.exists() and log.stat().st_size:
                break
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert said.splitlines()[-1].startswith("stopped after step ")
    assert "saved in runs/tiny, the same command goes on" in said and "Traceback" not in said
    last = json.loads(log.read_text().splitlines()[-1])["step"]
    os.environ["TINY"] = f"crash:{last + 1}"
    try:
        result = call("train", str(TINY), "steps=100k", "save_every=0")
    finally:
        del os.environ["TINY"]
    assert f"goes on after step {last:,}, in runs/tiny" in result.stderr


# -- completion -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words, incomplete, expected",
    [
        (["train"], "gp", ["gpt"]),
        (["train", str(TINY)], "s", ["steps=", "save_every=", "seed="]),
        (["train", str(TINY)], "dry_run=", ["dry_run=yes", "dry_run=no"]),
        (["train", "gpt"], "optimizer=a", ["optimizer=adamw"]),
        (["train", "gpt", "depth=3"], "dep", ["depth="]),
        (["train", "nothing"], "s", []),
    ],
)
def test_completion(words: list[str], incomplete: str, expected: list[str]) -> None:
    shell = ShellComplete(cli.main, {}, "trivium", "_TRIVIUM_COMPLETE")
    assert [item.value for item in shell.get_completions(words, incomplete)] == expected


def test_completion_falls_back_to_files() -> None:
    shell = ShellComplete(cli.main, {}, "trivium", "_TRIVIUM_COMPLETE")
    (item,) = shell.get_completions(["train"], "./mi")
    assert isinstance(item, click.shell_completion.CompletionItem) and item.type == "file"
