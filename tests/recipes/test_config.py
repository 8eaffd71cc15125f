"""Settings of a recipe from words, and what is shown of them."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from trivium import recipes
from trivium.errors import NotFound, UsageError
from trivium.recipes.config import Field, RecipeConfig, fields_in, fill, shared
from trivium.recipes.loading import find, source_of, word
from trivium.train import TrainConfig


@dataclass(frozen=True)
class Config(RecipeConfig):
    data: str = ""
    depth: int = 4  # layers
    rate: float = 3e-4
    quick: bool = False
    schedule: Literal["cosine", "linear"] = "cosine"
    betas: tuple[float, float] = (0.9, 0.95)
    sizes: tuple[int, ...] = (1, 2)
    limit: int | None = None
    place: Path = Path("there")
    mode: Literal[1, 2] | None = None

    def __post_init__(self) -> None:
        if self.depth < 1:
            raise ValueError(f"depth is at least 1, not {self.depth}")


@pytest.mark.parametrize(
    "words, name, value",
    [
        (["depth=6"], "depth", 6),
        (["depth=1_000"], "depth", 1000),
        (["depth=10k"], "depth", 10_000),
        (["depth=1e3"], "depth", 1000),
        (["depth=2.5M"], "depth", 2_500_000),
        (["depth= 7 "], "depth", 7),
        (["depth=9007199254740993"], "depth", 9007199254740993),  # no float holds it
        (["rate=1e-3"], "rate", 1e-3),
        (["rate=.5"], "rate", 0.5),
        (["rate=3"], "rate", 3.0),
        (["quick=yes"], "quick", True),
        (["quick=False"], "quick", False),
        (["data=a=b c/中文"], "data", "a=b c/中文"),
        (["data="], "data", ""),
        (["schedule=linear"], "schedule", "linear"),
        (["betas=0.8,0.9"], "betas", (0.8, 0.9)),
        (["betas=(0.8, 0.9)"], "betas", (0.8, 0.9)),
        (["sizes=1,2k,3"], "sizes", (1, 2000, 3)),
        (["sizes="], "sizes", ()),
        (["limit=none"], "limit", None),
        (["limit=5"], "limit", 5),
        (["mode=2"], "mode", 2),
        (["place=~/x"], "place", Path("~/x").expanduser()),
        (["dry-run=yes"], "dry_run", True),
        (["depth=2", "depth=3"], "depth", 3),
        ([], "depth", 4),
    ],
)
def test_values(words: list[str], name: str, value: object) -> None:
    found = getattr(fill(Config, words), name)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    "assignment, message",
    [
        ("dpeth=4", "the recipe has no setting 'dpeth'; did you mean depth?"),
        ("zzz=4", "the recipe has no setting 'zzz'; it has out, seed, device"),
        ("depth", "expected key=value, not 'depth'; did you mean depth=…?"),
        ("depth=4.5", "depth=4.5: expected a whole number"),
        ("depth=", "depth=: expected a whole number"),
        ("depth=nan", "depth=nan: expected a whole number"),
        ("depth=0", "depth is at least 1, not 0"),
        ("rate=fast", "rate=fast: expected a number"),
        ("rate=inf", "rate=inf: expected a number"),
        ("rate=1e999", "rate=1e999: expected a number"),
        ("depth=1e999", "depth=1e999: expected a whole number"),
        ("quick=perhaps", "quick=perhaps: expected yes or no"),
        ("schedule=cosin", "schedule=cosin: expected one of cosine, linear; did you mean cosine?"),
        ("betas=0.9", "betas=0.9: expected 2 values with commas between them"),
        ("betas=a,b", "betas=a,b: expected a number"),
        ("limit=x", "limit=x: expected a whole number"),
    ],
)
def test_errors_name_the_value_and_the_way_out(assignment: str, message: str) -> None:
    with pytest.raises(UsageError) as raised:
        fill(Config, [assignment])
    assert str(raised.value).startswith(message)
    assert "\n" not in str(raised.value)


def test_a_setting_without_default_must_be_given() -> None:
    @dataclass(frozen=True)
    class Bare:
        data: str

    assert fill(Bare, ["data=x"]) == Bare("x")
    with pytest.raises(UsageError, match="the setting data has no default: give data=…"):
        fill(Bare, [])


def test_a_type_that_no_word_can_give() -> None:
    @dataclass(frozen=True)
    class Odd:
        table: dict[str, int] = field(default_factory=dict)

    with pytest.raises(UsageError, match="table=1: a setting of type"):
        fill(Odd, ["table=1"])


def test_words_give_the_config_back() -> None:
    config = fill(Config, ["betas=0.8,0.9", "quick=yes", "limit=3", "data=a b", "sizes=4"])
    again = fill(Config, [f"{name}={word(value)}" for name, value in asdict(config).items()])
    assert again == config


def test_settings_that_two_configs_share() -> None:
    config = Config(seed=7, betas=(0.1, 0.2), device="cpu")
    expected = TrainConfig(seed=7, betas=(0.1, 0.2), device="cpu", steps=3)
    assert shared(TrainConfig, config, steps=3) == expected


SOURCE = '''
"""A recipe."""
import no_such_module
from typing import Literal
from trivium.recipes.config import RecipeConfig

class Shared(RecipeConfig):
    width: int = 64  # of a layer
    name: str = "a # b"  # of it

class Config(Shared):
    mode: Literal["x", "y"] = "x"  # how
    width: int = 8  # of my own
    betas: tuple[float, float] = (
        0.9,
        0.95,
    )  # two
    bare: int
'''


def test_fields_are_read_without_running_the_file(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(SOURCE)
    found = {field.name: field for field in fields_in(tmp_path / "mine.py")}
    own = ["mode", "width", "betas", "bare"]
    assert list(found)[:5] == [*own, "name"] and set(found) > {"seed", "out", "fresh"}
    assert found["mode"] == Field("mode", "x | y", "'x'", "how")
    assert found["width"] == Field("width", "int", "8", "of my own")
    assert found["name"].comment == "of it"
    assert found["betas"] == Field("betas", "tuple[float, float]", "(0.9, 0.95)", "two")
    assert found["bare"] == Field("bare", "int", "", "")
    assert found["seed"].comment.startswith("of the weights")


# -- the table of recipes -------------------------------------------------------------------------


@pytest.mark.parametrize("name", recipes.RECIPES)
def test_the_table_says_what_the_modules_say(name: str) -> None:
    import ast

    text = source_of(name).read_text()
    assert (ast.get_docstring(ast.parse(text)) or "").splitlines()[0] == recipes.RECIPES[name]
    for shown in fields_in(source_of(name)):
        assert shown.comment, f"{name}: {shown.name} has no comment behind it"


@pytest.mark.parametrize("name", recipes.RECIPES)
def test_every_recipe_has_config_and_main(name: str) -> None:
    config, main = find(name).load()
    assert fill(config, []) == config()
    assert callable(main)


def test_no_recipe_is_missing_in_the_table() -> None:
    folder = Path(recipes.__file__).parent
    there = {
        path.stem.replace("_", "-")
        for path in folder.glob("*.py")
        if "\ndef main(config" in path.read_text()
    }
    assert there == set(recipes.RECIPES)


@pytest.mark.parametrize(
    "content, message",
    [
        ("x = 1", "it has no dataclass `Config`"),
        ("class Config: pass\ndef main(config): pass", "it has no dataclass `Config`"),
        (
            "from trivium.recipes.config import RecipeConfig as Config",
            "it has no function `main(config)`",
        ),
        (
            "from dataclasses import dataclass\n@dataclass\nclass Config: pass\ndef main(c): 0",
            "Config has no field out: let it inherit trivium.recipes.config.RecipeConfig",
        ),
        ("def main(:", "mine.py, line 1: invalid syntax"),
    ],
)
def test_files_that_are_no_recipes(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(content)
    with pytest.raises(UsageError) as raised:
        find(str(tmp_path / "mine.py")).load()
    assert message in str(raised.value)


@pytest.mark.parametrize(
    "name, message",
    [
        ("gtp", "no recipe 'gtp'; did you mean gpt?"),
        ("qqq", "no recipe 'qqq': `trivium train --list` shows all"),
        ("./qqq.py", "no such recipe: ./qqq.py"),
        ("src/nothing", "no such recipe: src/nothing"),
    ],
)
def test_what_is_not_there(name: str, message: str) -> None:
    with pytest.raises(NotFound) as raised:
        find(name)
    assert str(raised.value).startswith(message)


def test_a_recipe_may_import_what_lies_beside_it(tmp_path: Path) -> None:
    (tmp_path / "beside_mine.py").write_text("VALUE = 3")
    (tmp_path / "mine.py").write_text(
        "from dataclasses import dataclass\n"
        "from beside_mine import VALUE\n"
        "from trivium.recipes.config import RecipeConfig\n"
        "@dataclass(frozen=True)\nclass Config(RecipeConfig):\n    n: int = VALUE\n"
        "def main(config): return {'n': config.n}\n"
    )
    config, main = find(str(tmp_path / "mine.py")).load()
    assert main(fill(config, [])) == {"n": 3}
