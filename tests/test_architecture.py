"""The house rules that a machine can check: who imports whom, what stays light, how large it is.

cli → {server | recipes | evaluate} → llmos → models → {language | …} → train
    → {data | checkpoint | hub | gguf_file} → nn → {errors | files | intervals}
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import trivium

ROOT = Path(trivium.__file__).parent
LAYERS = (
    {"__main__"},
    {"cli"},
    {"server", "recipes", "evaluate"},
    {"llmos"},
    {"models"},
    {"language", "clip", "diffusion", "segmentation"},
    {"train"},
    {"checkpoint", "data", "hub"},
    {"huggingface", "package_index", "catalogue"},  # where the hub gets models from
    {"download"},
    {"gguf_file"},
    {"nn"},
    {"errors", "files", "intervals"},
)
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
WITHIN_A_LAYER = {("files", "errors")}
MAX_FILE = 400  # lines; 300 is the aim
MAX_FUNCTION = 70  # lines; 50 is the aim
# A model of this machine is the only reason for llmos to know torch.
WITH_TORCH = {
    "llmos/local.py",
    "llmos/few_shot.py",
    "llmos/native_tools.py",
    "llmos/second_thoughts.py",
    "llmos/shipped.py",
    "llmos/tasks/local.py",
}

FILES = sorted(ROOT.rglob("*.py"))


def imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            assert node.module is not None
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def part(module: str) -> str | None:
    """The layer's name of a module of ours: trivium.llmos.tools → llmos."""
    pieces = module.split(".")
    return pieces[1] if pieces[0] == "trivium" and len(pieces) > 1 else None


def owner(path: Path) -> str:
    first = path.relative_to(ROOT).parts[0]
    return first.removesuffix(".py")


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_to_the_right(path: Path) -> None:
    own = owner(path)
    if own == "__init__":
        return
    assert own in RANK, f"{own} has no place in the house: add it to LAYERS"
    for module in imports(ast.parse(path.read_text())):
        other = part(module)
        if other is None or other == own or other not in RANK:
            continue
        allowed = RANK[other] > RANK[own] or (own, other) in WITHIN_A_LAYER
        assert allowed, f"{path.relative_to(ROOT)} imports {module}"


def test_the_check_notices() -> None:
    assert list(imports(ast.parse("from trivium.diffusion import unet"))) == [
        "trivium.diffusion",
        "trivium.diffusion.unet",
    ]
    assert not RANK["diffusion"] > RANK["language"]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_budgets(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= MAX_FILE
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            assert node.end_lineno - node.lineno < MAX_FUNCTION, node.name


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_module_says_what_it_is(path: Path) -> None:
    text = path.read_text()
    assert not text or ast.get_docstring(ast.parse(text))


@pytest.mark.parametrize(
    "path",
    [p for p in FILES if owner(p) == "llmos" and str(p.relative_to(ROOT)) not in WITH_TORCH],
    ids=lambda p: str(p.relative_to(ROOT)),
)
def test_the_operating_system_knows_no_torch(path: Path) -> None:
    for module in imports(ast.parse(path.read_text())):
        assert module.split(".")[0] not in ("torch", "numpy"), module
        assert part(module) not in ("models", "language", "nn"), module


HEAVY = {"torch", "numpy", "tokenizers", "llguidance", "gguf", "matplotlib", "huggingface_hub"}
LIGHT = [
    "import trivium",
    "import trivium.cli",
    "import trivium.hub",
    "import trivium.llmos.kernel",
]


@pytest.mark.parametrize("statement", LIGHT)
def test_light_imports(statement: str) -> None:
    script = f"{statement}; import sys; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert HEAVY & set(run.stdout.split()) == set()


@pytest.mark.parametrize("command", [["--help"], ["run", "--help"], ["chat", "--help"]])
def test_help_is_light(command: list[str]) -> None:
    """`-X importtime` names on stderr every module that is imported."""
    run = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "trivium", *command],
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = {line.rsplit("|", 1)[-1].strip().split(".")[0] for line in run.stderr.splitlines()}
    assert loaded & (HEAVY | {"httpx", "prompt_toolkit", "rich", "jsonschema"}) == set()
