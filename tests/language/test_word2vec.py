"""Word vectors: the compiled kernel against gradients by autograd, and files against gensim."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from gensim.models import KeyedVectors
from torch.nn.functional import logsigmoid

from trivium.errors import NotFound, UsageError
from trivium.language import negative_sampling as sampling
from trivium.language import word2vec
from trivium.language.negative_sampling import Found, Tables
from trivium.language.word_vectors import FILE, WordVectors, read_questions

V, D, WINDOW, NEGATIVE, RATE = 40, 20, 3, 5, 0.05


def tables(*, cbow: bool, negative: int = NEGATIVE, keep: float = 1.0) -> Tables:
    draw = np.random.default_rng(0)
    stride = sampling.stride_of(D)
    matrices = np.zeros((2, V, stride), np.float32)
    matrices[:, :, :D] = draw.normal(0, 0.5, (2, V, D))
    chance, alias = sampling.alias_table(np.arange(1, V + 1) ** 0.75)
    kept = np.full(V, int(keep * sampling.ALWAYS), np.uint32)
    return Tables(matrices[0], matrices[1], kept, chance, alias, WINDOW, negative, cbow)


class Draws:
    """The random numbers of word2vec.c."""

    def __init__(self, state: int) -> None:
        self.state = state

    def next(self) -> int:
        self.state = (self.state * 6364136223846793005 + 1442695040888963407) % 2**64
        return self.state >> 32

    def below(self, limit: int) -> int:
        return self.next() * limit >> 32


def by_autograd(t: Tables, ids: list[int], draws: Draws) -> tuple[np.ndarray, np.ndarray, float]:
    """The pass written out: one step of gradient descent on the loss of each position."""
    v = torch.tensor(t.inputs, dtype=torch.float64, requires_grad=True)
    u = torch.tensor(t.outputs, dtype=torch.float64, requires_grad=True)
    words = [w for w in ids if t.keep[w] == sampling.ALWAYS or draws.next() < t.keep[w]]
    losses = []
    for i, word in enumerate(words):
        reach = 1 + draws.below(t.window)
        context = [
            words[j] for j in range(max(i - reach, 0), min(i + reach + 1, len(words))) if j != i
        ]
        noise = []
        while len(noise) < t.negative:
            drawn = draws.below(V)
            drawn = drawn if draws.next() < t.chance[drawn] else int(t.alias[drawn])
            if drawn != word:
                noise.append(drawn)
        if not context:
            continue
        x = v[context].mean(dim=0, keepdim=True) if t.cbow else v[context]
        loss = -logsigmoid(x @ u[word]).sum() - logsigmoid(-(x @ u[noise].T)).sum()
        if i % 16 == 0:
            losses.append(loss.item() / len(x))
        for matrix, gradient in zip((v, u), torch.autograd.grad(loss, (v, u)), strict=True):
            matrix.data -= RATE * gradient
    return v.detach().numpy(), u.detach().numpy(), sum(losses) / max(len(losses), 1)


@pytest.fixture
def compiled() -> None:
    if sampling.kernel() is None:
        pytest.skip("needs a C compiler")


@pytest.mark.parametrize("cbow", [False, True])
@pytest.mark.parametrize(
    ("ids", "keep", "negative"),
    [
        ([3, 5], 1.0, 5),
        ([*range(V), *range(V)], 1.0, 5),
        ([*range(V)], 0.6, 3),
        ([7], 1.0, 5),
        ([], 1.0, 5),
    ],
    ids=["a pair", "a text", "with words left out", "one word", "none"],
)
def test_kernel_descends_the_gradient(
    ids: list[int], keep: float, negative: int, cbow: bool, compiled: None
) -> None:
    t = tables(cbow=cbow, negative=negative, keep=keep)
    expected = by_autograd(t, ids, Draws(77))
    states, found = np.array([77], np.uint64), Found()
    sampling.advance(t, np.array(ids, np.int32), RATE, RATE, states, found)
    for matrix, wanted in zip((t.inputs, t.outputs), expected, strict=False):
        assert np.abs(matrix - wanted).max() < 3e-6
    assert found.mean == pytest.approx(expected[2], rel=1e-3, abs=1e-9)
    assert not t.inputs[:, D:].any() and not t.outputs[:, D:].any()


@pytest.mark.parametrize("cbow", [False, True])
def test_step_descends_the_gradient(cbow: bool) -> None:
    """What is used without a compiler: several positions, some of whose contexts do not count."""
    torch.manual_seed(0)
    v, u = torch.randn(2, V, D, dtype=torch.float64).requires_grad_()
    contexts, targets = torch.randint(V, (6, 4)), torch.randint(V, (6, 3))
    mask = torch.tensor([[1, 1, 0, 1], [1, 0, 0, 0], [1, 1, 1, 1]] * 2, dtype=torch.bool)
    v, u = v.detach().requires_grad_(), u.detach().requires_grad_()
    losses = []
    for words, counted, (word, *noise) in zip(contexts, mask, targets.tolist(), strict=True):
        x = v[words[counted]].mean(dim=0, keepdim=True) if cbow else v[words[counted]]
        losses.append(-logsigmoid(x @ u[word]).sum() - logsigmoid(-(x @ u[noise].T)).sum())
    gradients = torch.autograd.grad(torch.stack(losses).sum(), (v, u))
    ours = [v.detach().clone(), u.detach().clone()]
    found = sampling.step(*ours, contexts, mask, targets, RATE, cbow=cbow)
    for matrix, before, gradient in zip(ours, (v, u), gradients, strict=True):
        torch.testing.assert_close(matrix, before.detach() - RATE * gradient)
    many = torch.ones(6) if cbow else mask.sum(dim=1)
    torch.testing.assert_close(found, torch.stack(losses).detach() / many)


def test_noise_is_drawn_by_its_shares() -> None:
    shares = np.array([5, 1, 0.1, 7, 2, 0.01, 3])
    chance, alias = sampling.alias_table(shares)
    drawn = chance / sampling.ALWAYS
    found = drawn.copy()
    np.add.at(found, alias, 1 - drawn)
    assert found / len(shares) == pytest.approx(shares / shares.sum(), abs=1e-7)


def test_frequent_words_are_left_out() -> None:
    counts = np.array([9000, 900, 99, 1])
    shares = sampling.kept(counts, 1e-3) / sampling.ALWAYS
    f = counts / counts.sum()
    expected = np.minimum((np.sqrt(f / 1e-3) + 1) * 1e-3 / f, 1)  # as word2vec's program has it
    assert shares == pytest.approx(expected, abs=1e-6)
    assert (sampling.kept(counts, 0) == sampling.ALWAYS).all()


FAMILIES = (("king", "queen", "crown", "throne"), ("cat", "dog", "paw", "tail"))


def texts(count: int) -> Iterator[str]:
    """Words of one family stand together."""
    draw = np.random.default_rng(3)
    for _ in range(count):
        family = FAMILIES[draw.integers(2)]
        yield " ".join(draw.choice([*family, "the", "of"], 30))


def learnt(tmp_path: Path, count: int = 300, **settings: object) -> word2vec.Learning:
    vocabulary = word2vec.count_words(texts(count))
    numbers = tmp_path / "numbers"
    word2vec.encode(texts(count), vocabulary, numbers)
    defaults = {"width": 16, "subsample": 0.0, "epochs": 3, "learning_rate": 0.05, "threads": 1}
    learning = word2vec.Learning(vocabulary, word2vec.Config(**(defaults | settings)))  # type: ignore[arg-type]
    list(learning.run(numbers))
    return learning


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("kind", ["skip-gram", "cbow"])
def test_words_of_a_family_become_neighbours(
    kind: str, native: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not native:
        monkeypatch.setenv("TRIVIUM_NATIVE", "0")
    count, rate = (300, 0.05) if native else (30, 0.2)  # the latter is slow with so few words
    vectors = learnt(tmp_path, count, kind=kind, epochs=6, learning_rate=rate).vectors
    for family in FAMILIES:
        near = {found.word for found in vectors.nearest([family[0]], count=3)}
        assert near == set(family[1:])


def test_two_threads_learn_as_well(tmp_path: Path) -> None:
    vectors = learnt(tmp_path, threads=2, epochs=6).vectors
    assert {n.word for n in vectors.nearest(["cat"], count=3)} == {"dog", "paw", "tail"}


def test_stopped_and_gone_on_equals_uninterrupted(tmp_path: Path) -> None:
    whole = learnt(tmp_path)
    numbers = tmp_path / "numbers"
    first = word2vec.Learning(whole.vocabulary, whole.config)
    for progress in first.run(numbers):
        if progress.ends_epoch:
            first.save(tmp_path)
            break
    second = word2vec.Learning(whole.vocabulary, whole.config)
    second.resume(tmp_path)
    assert second.epoch == 1
    done = list(second.run(numbers))
    assert (second.matrix == whole.matrix).all()
    assert done[-1].done == 1 and done[-1].ends_epoch


def test_the_state_of_another_run_is_refused(tmp_path: Path) -> None:
    learning = learnt(tmp_path)
    learning.save(tmp_path)
    other = word2vec.Learning(learning.vocabulary, word2vec.Config(width=32))
    with pytest.raises(UsageError, match="other settings"):
        other.resume(tmp_path)
    (tmp_path / word2vec.STATE).write_bytes(b"nothing")
    with pytest.raises(UsageError, match="no state"):
        other.resume(tmp_path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("The King's 2 crowns", ["the", "king", "s", "2", "crowns"]),
        ("港股缩量A股", ["港", "股", "缩", "量", "a", "股"]),
        ("Übung — naïve\n", ["übung", "naïve"]),
    ],
)
def test_words(text: str, words: list[str]) -> None:
    assert word2vec.words_of(text) == words


def test_vocabulary_and_numbers(tmp_path: Path) -> None:
    corpus = ["a b a", "", "c a b a"]
    vocabulary = word2vec.count_words(corpus, min_count=2)
    assert vocabulary.words == ("a", "b") and vocabulary.counts.tolist() == [4, 2]
    assert word2vec.encode(corpus, vocabulary, tmp_path / "n") == 6
    found = np.fromfile(tmp_path / "n", np.int32).tolist()
    assert found == [0, 1, 0, -1, -1, 0, 1, 0, -1]


VECTORS = WordVectors(
    ("king", "queen", "man", "woman", "猫", "the"),
    np.array(
        [[5, 1, 0], [5, -1, 0], [0.5, 1, 1], [0.5, -1, 1], [0, 0, 3], [-2, 0.1, -1]], np.float32
    ),
)


@pytest.mark.parametrize("name", ["v.txt", "v.bin", "v.vec"])
def test_files_of_others(name: str, tmp_path: Path) -> None:
    path, binary = tmp_path / name, name.endswith(".bin")
    VECTORS.save(path)
    theirs = KeyedVectors.load_word2vec_format(str(path), binary=binary)
    assert tuple(theirs.index_to_key) == VECTORS.words
    assert (theirs.vectors == VECTORS.matrix).all()
    other = tmp_path / f"other-{name}"
    theirs.save_word2vec_format(str(other), binary=binary)
    for found in (WordVectors.load(path), WordVectors.load(other)):
        assert found.words == VECTORS.words and (found.matrix == VECTORS.matrix).all()


@pytest.mark.parametrize(
    ("plus", "minus"),
    [(["king"], []), (["king", "woman"], ["man"]), (["猫"], ["the"]), (["king", "the", "man"], [])],
)
def test_nearest_equals_gensim(plus: list[str], minus: list[str]) -> None:
    theirs = KeyedVectors(3)
    theirs.add_vectors(list(VECTORS.words), VECTORS.matrix)
    expected = theirs.most_similar(plus, minus, topn=4)
    found = VECTORS.nearest(plus, minus, count=4)
    assert [n.word for n in found] == [word for word, _ in expected[: len(found)]]
    assert [n.cosine for n in found] == pytest.approx(
        [c for _, c in expected[: len(found)]], abs=1e-6
    )
    assert len(found) == min(4, len(VECTORS) - len(plus) - len(minus))


def test_analogies(tmp_path: Path) -> None:
    path = tmp_path / "questions.txt"
    path.write_text(": family\nMan King Woman Queen\nman king woman the\n: other\nking x y z\n")
    sections = VECTORS.answer(read_questions(path))
    assert [tuple(s.__dict__.values()) for s in sections] == [
        ("family", 1, 2, 0),
        ("other", 0, 0, 1),
    ]


def test_glove_has_no_first_line(tmp_path: Path) -> None:
    (tmp_path / "glove.txt").write_text("the 0.5 -1\nof 2 1e-3\n")
    found = WordVectors.load(tmp_path / "glove.txt")
    assert found.words == ("the", "of") and found["of"].tolist() == pytest.approx([2, 1e-3])


def test_plane_keeps_what_varies_most() -> None:
    words = list(VECTORS.words)
    plane = VECTORS.plane(words)
    rows = VECTORS.unit - VECTORS.unit.mean(axis=0)
    variances = np.linalg.eigvalsh(rows.T @ rows)[::-1]
    assert (plane**2).sum(axis=0) == pytest.approx(variances[:2], rel=1e-5)


def file_with(content: bytes, name: str) -> Callable[[Path], object]:
    def load(folder: Path) -> object:
        (folder / name).write_bytes(content)
        return WordVectors.load(folder / name)

    return load


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (file_with(b"2 3\nthe 1 2 3\nof 1 2\n", "v.txt"), "line 3: 2 numbers instead of 3"),
        (file_with(b"the 1 x\n", "v.txt"), "line 1: .*'x'|line 1: .*x"),
        (file_with(b"", "v.txt"), "no vectors"),
        (file_with(b"the nan\n", "v.txt"), "not finite"),
        (file_with(b"999999 999\nthe ", "v.bin"), "cut short"),
        (file_with(b"1 1\n\xff\xfe \0\0\0\0", "v.bin"), "not UTF-8"),
        (file_with(b"hello", "v.bin"), "does not begin"),
        (file_with(b"the 1\n", "v.pkl"), "ends in one of"),
        (lambda p: WordVectors.load(p), f"no {FILE}"),
        (lambda p: WordVectors.load(p / "none.txt"), "no such file"),
        (lambda p: VECTORS.nearest(["kinq"]), "spelled like it: king"),
        (lambda p: VECTORS.nearest([]), "no word"),
        (lambda p: word2vec.count_words(["a b c"]), "fewer than two words"),
        (lambda p: word2vec.Config(window=99), "window is between"),
        (lambda p: word2vec.Config(kind="glove"), "skip-gram or cbow"),  # type: ignore[arg-type]
    ],
)
def test_what_is_wrong(wrong: Callable[[Path], object], said: str, tmp_path: Path) -> None:
    with pytest.raises((UsageError, NotFound), match=said) as caught:
        wrong(tmp_path)
    assert "\n" not in str(caught.value)
