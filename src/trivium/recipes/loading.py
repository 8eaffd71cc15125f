"""Finds a recipe: by its name in the table, by the path of a file, or by the folder of a run."""

import difflib
import importlib
import importlib.util
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from trivium import recipes
from trivium.errors import NotFound, UsageError
from trivium.files import read_json

RECORD = "recipe.json"  # in a run's folder


@dataclass(frozen=True)
class Recipe:
    """Where a recipe stands, and what a run's folder adds to the command; nothing is imported."""

    name: str
    source: Path
    ours: bool
    assignments: Sequence[str] = ()  # of the run that is to go on

    def load(self) -> tuple[type[Any], Callable[[Any], Any]]:
        """Its `Config` and `main`."""
        if self.ours:
            module = importlib.import_module(f"trivium.recipes.{self.source.stem}")
        else:
            module = _run_file(self.source)
        config, main = getattr(module, "Config", None), getattr(module, "main", None)
        if not (isinstance(config, type) and is_dataclass(config)):
            raise UsageError(
                f"{self.source} is no recipe: it has no dataclass `Config` "
                "(see docs/training.md, Your own recipe)"
            )
        if not callable(main):
            raise UsageError(f"{self.source} is no recipe: it has no function `main(config)`")
        missing = [name for name in ("out", "dry_run") if not hasattr(config, name)]
        if missing:
            raise UsageError(
                f"{self.source}: Config has no field {missing[0]}: let it inherit "
                "trivium.recipes.config.RecipeConfig"
            )
        return config, main


def find(name: str) -> Recipe:
    """The recipe called `name`. Raises NotFound and UsageError."""
    if name in recipes.RECIPES:
        return Recipe(name, source_of(name), True)
    path = Path(name)
    if path.is_dir():
        return _of_run(path)
    if path.suffix == ".py" or "/" in name:
        if not path.is_file():
            raise NotFound(f"no such recipe: {name} is no file and no folder of a run")
        if path.suffix != ".py":
            raise UsageError(f"{name} is no recipe: a recipe is a file of Python (.py)")
        return Recipe(path.stem.replace("_", "-"), path, False)
    close = difflib.get_close_matches(name, recipes.RECIPES, n=1)
    hint = f"; did you mean {close[0]}?" if close else ": `trivium train --list` shows all"
    raise NotFound(f"no recipe {name!r}{hint}")


def source_of(name: str) -> Path:
    return Path(recipes.__file__).parent / f"{name.replace('-', '_')}.py"


def _of_run(folder: Path) -> Recipe:
    """The recipe of the run in a folder, with the settings of the run."""
    if not (folder / RECORD).is_file():
        raise NotFound(f"{folder} is no folder of a run: it has no {RECORD}")
    record = read_json(folder / RECORD)
    name, config = record.get("recipe"), record.get("config")
    if not isinstance(name, str) or not isinstance(config, dict):
        raise UsageError(f"{folder / RECORD} is not the record of a run")
    if name not in recipes.RECIPES:  # a folder is data: it cannot name a file to run
        raise UsageError(
            f"{folder} was made by a recipe of its own: `trivium train ./{name}.py out={folder} …`"
        )
    settings = {**config, "out": str(folder)}
    return Recipe(name, source_of(name), True, [f"{k}={word(v)}" for k, v in settings.items()])


def word(value: Any) -> str:
    """A value as it is written behind `key=`."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ",".join(map(word, value))
    return str(value)


def _run_file(source: Path) -> ModuleType:
    """Run a recipe of the user's own; it may import what lies beside it."""
    name = f"recipe_{source.stem}"
    spec = importlib.util.spec_from_file_location(name, source.resolve())
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    beside = str(source.resolve().parent)
    if beside not in sys.path:
        sys.path.append(beside)
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        raise UsageError(f"{source}, line {error.lineno}: {error.msg}") from error
    return module
