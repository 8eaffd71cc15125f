"""The model that a recipe goes on from: one that is given, or a small one that is made first."""

from pathlib import Path

from trivium import hub
from trivium.language.pretrained import Parts, load_trainable
from trivium.recipes import gpt
from trivium.recipes.config import RecipeConfig
from trivium.recipes.run import Run

DEPTH = 2


def open_base(run: Run, config: RecipeConfig, model: str, text: str, *, steps: int = 0) -> Parts:
    """A model by its name or folder, in float32; for "", a GPT that is pre-trained on `text` (the
    reference inside CPython for "") and kept in the run's folder."""
    if model:
        path = Path(model).expanduser()
        return load_trainable(path if path.exists() else hub.find(model))
    folder = run.folder / "base"
    run.tell(f"no model was given: a small one is pre-trained first, in {folder}")
    gpt.main(
        gpt.Config(
            data=text,
            depth=DEPTH,
            steps=steps,
            out=str(folder),
            seed=config.seed,
            device=config.device,
        )
    )
    return load_trainable(folder)
