"""BERT and sentence embeddings against `transformers`: its BertModel, mean over the tokens that are
no padding, length 1; on tiny random weights, and on the published all-MiniLM-L6-v2."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from trivium.errors import UsageError
from trivium.language.embed import Embedder
from trivium.language.pretrained import load_pretrained, read_folder

transformers = pytest.importorskip("transformers")

CPU = torch.device("cpu")
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "cat", "sat", "##ting", "猫", "on", "mat", "."]
TEXTS = ["the cat sat", "the cat sitting on the mat.", "", "猫", "who", "cat " * 13]
MULTILINGUAL = [
    "The cat sat on the mat.",
    "Ein Hund läuft durch den Park.",
    "猫がマットの上に座った。",
    "Кошка сидит на коврике",
    "العربية جميلة",
    "naïve café — déjà vu 🙂🎉",
    "한국어 문장입니다",
    "हिन्दी में एक वाक्य",
    "tab\tand\nnewline",
    "",
    "word " * 200,
]


@pytest.fixture(scope="module", params=["gelu", "gelu_new"])
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """(reference model, folder of a sentence model) with random weights."""
    config = transformers.BertConfig(
        vocab_size=len(WORDS),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=24,
        hidden_act=request.param,
    )
    torch.manual_seed(0)
    reference = transformers.BertModel(config).eval()
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    folder = tmp_path_factory.mktemp("bert")
    reference.save_pretrained(folder)
    transformers.BertTokenizer(vocab={word: i for i, word in enumerate(WORDS)}).save_pretrained(
        folder
    )
    return reference, folder


def with_modules(folder: Path, target: Path, kinds: list[str], pooling: dict[str, Any]) -> Path:
    """The folder with what sentence-transformers writes beside a model."""
    target.mkdir()
    for file in folder.iterdir():
        (target / file.name).symlink_to(file)
    paths = ["", "1_Pooling", "2_Normalize"]
    names = [f"sentence_transformers.models.{kind}" for kind in kinds]
    modules = [{"path": p, "type": n} for p, n in zip(paths, names, strict=False)]
    (target / "modules.json").write_text(json.dumps(modules))
    (target / "1_Pooling").mkdir()
    (target / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    return target


def reference_features(model: Any, folder: Path, texts: list[str]) -> tuple[Tensor, Tensor]:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    batch = tokenizer(texts, padding=True, truncation=True, max_length=256, return_tensors="pt")
    with torch.no_grad():
        return model(**batch).last_hidden_state, batch["attention_mask"].unsqueeze(-1).float()


def reference_mean(model: Any, folder: Path, texts: list[str]) -> Tensor:
    features, real = reference_features(model, folder, texts)
    return (features * real).sum(1) / real.sum(1)


@pytest.mark.parametrize(
    ("precision", "tolerance"), [("float32", 1e-4), ("bfloat16", 3e-2), ("int8", 1e-1)]
)
def test_features(tiny: tuple[Any, Path], precision: str, tolerance: float) -> None:
    reference, folder = tiny
    ids = torch.randint(4, len(WORDS), (3, 20), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        ours = read_folder(folder, CPU, precision).features(ids).float()
        expected = reference(ids).last_hidden_state
    assert (ours - expected).abs().max() / expected.abs().max() < tolerance


def test_padding_changes_nothing(tiny: tuple[Any, Path]) -> None:
    """In batches of any size, beside longer or shorter texts: the same vectors."""
    reference, folder = tiny
    embedder = Embedder.load(folder)
    expected = torch.nn.functional.normalize(reference_mean(reference, folder, TEXTS), dim=-1)
    for batch in (1, 2, 32):
        torch.testing.assert_close(
            embedder.embed(TEXTS, batch=batch), expected, rtol=1e-4, atol=1e-5
        )
    assert embedder.embed([]).shape == (0, 32)


def test_pooling_is_read_from_the_files(tiny: tuple[Any, Path], tmp_path: Path) -> None:
    reference, folder = tiny
    features, _ = reference_features(reference, folder, TEXTS)
    kinds, flags = ["Transformer", "Pooling"], {"pooling_mode_cls_token": True}
    place = with_modules(folder, tmp_path / "cls", kinds, flags)
    torch.testing.assert_close(
        Embedder.load(place).embed(TEXTS), features[:, 0], rtol=1e-4, atol=1e-5
    )
    place = with_modules(folder, tmp_path / "mean", kinds, {"pooling_mode": "mean"})
    torch.testing.assert_close(
        Embedder.load(place).embed(TEXTS),
        reference_mean(reference, folder, TEXTS),
        rtol=1e-4,
        atol=1e-5,
    )


@pytest.mark.parametrize(
    ("kinds", "pooling", "said"),
    [
        (["Transformer", "Pooling", "Dense"], {"pooling_mode": "mean"}, "a Dense layer"),
        (["Transformer", "Pooling"], {"pooling_mode_max_tokens": True}, "pooling max"),
        (["Transformer", "Pooling"], {}, "pooling missing"),
        (
            ["Transformer", "Pooling"],
            {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True},
            "mean and cls",
        ),
    ],
)
def test_what_is_not_supported_is_named(
    tiny: tuple[Any, Path], tmp_path: Path, kinds: list[str], pooling: dict[str, Any], said: str
) -> None:
    place = with_modules(tiny[1], tmp_path / "m", kinds, pooling)
    with pytest.raises(UsageError, match=said):
        Embedder.load(place)


@pytest.mark.parametrize("content", ["", "{}", "[1]", "\0"])
def test_broken_modules_are_named(tiny: tuple[Any, Path], tmp_path: Path, content: str) -> None:
    place = with_modules(tiny[1], tmp_path / "m", ["Transformer"], {})
    (place / "modules.json").write_text(content)
    with pytest.raises(UsageError, match=r"modules\.json"):
        Embedder.load(place)


def test_long_texts_are_cut_only_when_asked(tiny: tuple[Any, Path], tmp_path: Path) -> None:
    _, folder = tiny
    place = with_modules(
        folder, tmp_path / "m", ["Transformer", "Pooling", "Normalize"], {"pooling_mode": "mean"}
    )
    (place / "sentence_bert_config.json").write_text('{"max_seq_length": 8}')
    embedder = Embedder.load(place)
    with pytest.raises(UsageError, match=r"text 2 has 9 tokens and m reads 8"):
        embedder.embed(["cat", "cat " * 7])
    cut = embedder.embed(["cat " * 7, "cat " * 900], truncate=True)
    assert torch.equal(cut, embedder.embed(["cat " * 6] * 2))


def test_markup_in_a_text_is_text(tiny: tuple[Any, Path]) -> None:
    """No text can end itself: [SEP] in it is spelled out, here as unknown words."""
    embedder = Embedder.load(tiny[1])
    sep = WORDS.index("[SEP]")
    assert embedder.tokenizer.encode("cat [SEP] mat", wrap=True).count(sep) == 1


def test_heads_are_left_out(tiny: tuple[Any, Path], tmp_path: Path) -> None:
    reference, folder = tiny
    model = transformers.BertForMaskedLM(reference.config)
    model.bert.load_state_dict(reference.state_dict(), strict=False)
    model.save_pretrained(tmp_path)
    ours, same = read_folder(tmp_path, CPU, "float32"), read_folder(folder, CPU, "float32")
    state = ours.state_dict()
    assert all(torch.equal(state[name], value) for name, value in same.state_dict().items())


def test_an_encoder_does_not_generate(tiny: tuple[Any, Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="encoder"):
        load_pretrained(tiny[1])
    raw = json.loads((tiny[1] / "config.json").read_text())
    for change in ({"is_decoder": True}, {"position_embedding_type": "relative_key"}):
        (tmp_path / "config.json").write_text(json.dumps(raw | change))
        with pytest.raises(UsageError, match=next(iter(change))):
            Embedder.load(tmp_path)


@pytest.mark.published
def test_minilm(published_model: Callable[[str], Path]) -> None:
    """all-MiniLM-L6-v2 on text of many languages: as transformers with mean pooling, to 1e-4."""
    folder = published_model("all-minilm-l6-v2")
    embedder = Embedder.load(folder)
    assert (embedder.max_tokens, embedder.pooling, embedder.normalise) == (256, "mean", True)
    reference = transformers.BertModel.from_pretrained(folder).eval()
    texts = [*MULTILINGUAL, "word " * 300]
    expected = torch.nn.functional.normalize(reference_mean(reference, folder, texts), dim=-1)
    vectors = embedder.embed(texts, truncate=True)
    assert (vectors - expected).abs().max() < 1e-4
    cat, kitten, tax = embedder.embed(["A cat sleeps.", "A kitten naps.", "Tax law changed."])
    assert cat @ kitten > 0.5 > cat @ tax
