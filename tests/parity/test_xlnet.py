"""Our XLNet against `transformers`, on tiny random weights saved by that library; 1e-4 of the
largest logit."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from trivium.checkpoint import expand
from trivium.errors import UsageError
from trivium.language.embed import is_embedder
from trivium.language.engine import Engine
from trivium.language.families.xlnet import NAMES, read_xlnet, xlnet_config
from trivium.language.generation import Request
from trivium.language.pretrained import load_pretrained
from trivium.language.tokenizer import Tokenizer

transformers = pytest.importorskip("transformers")

CPU = torch.device("cpu")
SIZES = {"vocab_size": 97, "d_model": 32, "n_layer": 3, "n_head": 4, "d_inner": 48}
ROWS, LENGTH, PLACES = 2, 14, 5


@pytest.fixture(params=["gelu", "gelu_new"], scope="module")
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """(reference model, folder) with random weights, biases and norms included."""
    config = transformers.XLNetConfig(**SIZES, ff_activation=request.param)
    torch.manual_seed(0)
    reference = transformers.XLNetLMHeadModel(config).eval()
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    folder = tmp_path_factory.mktemp("xlnet")
    reference.save_pretrained(folder)
    return reference, folder


def random_ids() -> Tensor:
    return torch.randint(97, (ROWS, LENGTH), generator=torch.Generator().manual_seed(1))


def an_order() -> tuple[Tensor, Tensor]:
    """Five places of each row become known one by one; the others are known from the start."""
    rng = torch.Generator().manual_seed(2)
    places = torch.rand(ROWS, LENGTH, generator=rng).topk(PLACES).indices
    ranks = torch.arange(1, PLACES + 1).expand(ROWS, -1)
    return torch.zeros(ROWS, LENGTH, dtype=torch.long).scatter(1, places, ranks), places


def types() -> Tensor:
    return torch.randint(2, (ROWS, LENGTH), generator=torch.Generator().manual_seed(3))


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


@torch.no_grad()
@pytest.mark.parametrize("typed", [False, True])
def test_permuted_logits(pair: tuple[Any, Path], typed: bool) -> None:
    """perm_mask and target_mapping say in their words what `order` and `places` say in ours."""
    reference, folder = pair
    ours, ids, kinds = read_xlnet(folder, CPU), random_ids(), types() if typed else None
    order, places = an_order()
    hidden = (order[:, None] >= order[:, :, None]) & (order[:, None] > 0)
    expected = reference(
        ids,
        perm_mask=hidden.float(),
        target_mapping=torch.nn.functional.one_hot(places, LENGTH).float(),
        token_type_ids=kinds,
    ).logits
    found = ours.logits(ours.predict(ids, order, places, types=kinds))
    assert relative(found, expected) < 1e-4


@torch.no_grad()
@pytest.mark.parametrize("typed", [False, True])
def test_encoded(pair: tuple[Any, Path], typed: bool) -> None:
    """Everything sees everything, but for padding."""
    reference, folder = pair
    ours, ids, kinds = read_xlnet(folder, CPU), random_ids(), types() if typed else None
    real = torch.ones(ROWS, LENGTH, dtype=torch.bool)
    real[1, 9:] = False
    expected = reference(ids, attention_mask=real.float(), token_type_ids=kinds).logits
    found = ours.logits(ours.encode(ids, real=real, types=kinds))
    assert relative(found[real], expected[real]) < 1e-4


@torch.no_grad()
def test_left_to_right_logits(pair: tuple[Any, Path]) -> None:
    reference, folder = pair
    ours, ids = read_xlnet(folder, CPU), random_ids()
    places = torch.arange(1, LENGTH)
    # The first token sees nothing else; theirs would see everything if it saw nothing at all.
    later = torch.ones(LENGTH, LENGTH).triu()
    expected = reference(
        ids,
        perm_mask=later.expand(ROWS, -1, -1),
        target_mapping=torch.nn.functional.one_hot(places, LENGTH).float().expand(ROWS, -1, -1),
    ).logits
    assert relative(ours(ids)[:, :-1], expected) < 1e-4


def test_a_published_folder_writes(tmp_path: Path) -> None:
    """Loaded by what every command loads with, and continued from the cache."""
    tokenizer = Tokenizer.train(["the quick brown fox jumps over the lazy dog"] * 9, 300)
    torch.manual_seed(0)
    sizes = {**SIZES, "vocab_size": tokenizer.vocab_size}
    transformers.XLNetLMHeadModel(transformers.XLNetConfig(**sizes)).save_pretrained(tmp_path)
    tokenizer.save(tmp_path)
    assert not is_embedder(tmp_path)
    loaded = load_pretrained(tmp_path)
    assert loaded.precision == "float32"
    ids = loaded.tokenizer.encode("the lazy dog")
    *made, _ = Engine(loaded).generate(Request(ids, max_tokens=5))
    for token in made:
        with torch.no_grad():
            assert int(loaded.model(torch.tensor([ids]))[0, -1].argmax()) == token.id
        ids.append(token.id)
    with pytest.raises(UsageError, match="xlnet model, which has no int8 weights"):
        load_pretrained(tmp_path, precision="int8")


def test_names_there_and_back(pair: tuple[Any, Path]) -> None:
    """The table's inverse gives the tensors that were read."""
    from safetensors.torch import load_file

    _, folder = pair
    theirs, ours = load_file(folder / "model.safetensors"), read_xlnet(folder, CPU)
    for name, parts in expand(NAMES, ours.config.layers).items():
        pieces = ours.get_parameter(name).chunk(len(parts)) if len(parts) > 1 else None
        for i, part in enumerate(parts):
            tensor = pieces[i] if pieces else ours.get_parameter(name)
            back = part.change.write(tensor, ours.config) if part.change else tensor
            assert torch.equal(back, theirs[part.name]), part.name


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"attn_type": "uni"}, "attn_type = 'uni'"),
        ({"clamp_len": 8}, "clamp_len = 8"),
        ({"ff_activation": "relu"}, "'relu'"),
        ({"d_model": None}, "d_model"),
    ],
)
def test_what_we_would_get_wrong_is_refused(
    pair: tuple[Any, Path], change: dict[str, Any], said: str
) -> None:
    raw = json.loads((pair[1] / "config.json").read_text()) | change
    with pytest.raises(UsageError, match=said):
        xlnet_config({key: value for key, value in raw.items() if value is not None})
