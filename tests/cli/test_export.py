"""`export`: what is written is the model, it appears when it is whole, and nothing else is lost."""

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

from trivium.cli import export as command
from trivium.cli import main

IDS = torch.tensor([[5, 6, 7, 8]])


def export(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["export", *map(str, arguments)])


def logits(path: Path) -> torch.Tensor:
    from trivium.models import load

    loaded = load(path, precision="float32")
    with torch.no_grad():
        made: torch.Tensor = loaded.model(IDS)
    return made


@pytest.mark.parametrize(
    "out, kind, tolerance",
    [
        ("copy", None, 0),
        ("copy", "f16", 2e-3),
        ("copy.gguf", "f32", 0),
        ("copy.gguf", "bf16", 2e-2),
        ("copy.GGUF", None, 5e-2),
        ("copy.gguf", "Q4_0", 0.5),
    ],
)
def test_what_is_written_is_the_model(
    tiny_folder: Path, tmp_path: Path, out: str, kind: str | None, tolerance: float
) -> None:
    place = tmp_path / "new" / out
    result = export(tiny_folder, place, *(() if kind is None else ("--type", kind)), "--json")
    assert result.exit_code == 0, result.stderr
    report = json.loads(result.stdout)
    assert report["format"] == ("folder" if out == "copy" else "gguf")
    expected = logits(tiny_folder)
    assert (logits(place) - expected).abs().max() <= tolerance * expected.abs().max()
    assert [path.name for path in place.parent.iterdir()] == [out], "nothing else is left"


def test_a_folder_keeps_every_bit_in_the_smallest_type(tiny_folder: Path, tmp_path: Path) -> None:
    assert ", f32, " in export(tiny_folder, tmp_path / "a").stderr
    assert export(tiny_folder, tmp_path / "b", "--type", "bf16").exit_code == 0
    assert ", bf16, " in export(tmp_path / "b", tmp_path / "c").stderr


def test_force_replaces_a_model(tiny_folder: Path, tmp_path: Path) -> None:
    for out in (tmp_path / "copy", tmp_path / "copy.gguf"):
        assert export(tiny_folder, out).exit_code == 0
        refused = export(tiny_folder, out)
        assert refused.exit_code == 2 and "--force replaces it" in refused.stderr
        assert export(tiny_folder, out, "--force").exit_code == 0
        assert logits(out).shape == (1, 4, logits(tiny_folder).shape[-1])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy", "copy.gguf"]


def test_a_failed_export_leaves_what_was_there(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "copy.gguf"
    assert export(tiny_folder, out).exit_code == 0
    before = out.read_bytes()

    def full(*given: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("trivium.language.export.export_gguf", full)
    assert export(tiny_folder, out, "--force").exit_code != 0
    assert out.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["copy.gguf"]


@pytest.mark.parametrize(
    "make, arguments, code, message",
    [
        ("", ("MODEL", "out", "--type", "q4_0"), 2, "--type q4_0 is for GGUF"),
        ("", ("MODEL", "out.gguf", "--type", "q9"), 2, "Invalid value for '--type'"),
        ("", ("remote:x", "out"), 2, "remote:x is at an endpoint"),
        ("", ("./none.gguf", "out"), 4, "no such file: none.gguf"),
        ("", ("MODEL", "MODEL", "--force"), 2, "holds the model that is to be exported"),
        ("out.gguf:text", ("MODEL", "out.gguf", "--force"), 2, "is no GGUF file"),
        ("out:text", ("MODEL", "out", "--force"), 2, "is no folder"),
        ("out/letters.md:x", ("MODEL", "out", "--force"), 2, "has no config.json"),
        ("out/photo.jpg:x", ("MODEL", "out", "--force"), 2, "holds photo.jpg"),
        ("file:x", ("MODEL", "file/out"), 1, "cannot write file/out"),
    ],
)
def test_wrong_requests(
    tiny_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    make: str,
    arguments: tuple[str, ...],
    code: int,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    if make:
        name, _, text = make.partition(":")
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text(text)
    words = [str(tiny_folder) if word == "MODEL" else word for word in arguments]
    result = export(*words)
    assert result.exit_code == code, result.stderr
    assert message in result.stderr
    if make:
        assert Path(name).read_text() == text


def test_f16_has_a_range(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(command, "LARGEST_F16", 0.1)
    result = export(tiny_folder, tmp_path / "out.gguf", "--type", "f16")
    assert result.exit_code == 2 and "too large for f16: take bf16" in result.stderr
    assert not (tmp_path / "out.gguf").exists()
