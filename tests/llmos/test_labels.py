"""The label algebra: a bounded join-semilattice in which more inputs never permit more."""

from hypothesis import given
from hypothesis import strategies as st

from trivium.llmos.labels import PUBLIC, Label

names = st.frozensets(st.sampled_from(["a", "b", "c", "d"]))
labels = st.builds(Label, names, st.one_of(st.just(PUBLIC), names))


@given(labels, labels)
def test_join_is_commutative(a: Label, b: Label) -> None:
    assert a | b == b | a


@given(labels, labels, labels)
def test_join_is_associative(a: Label, b: Label, c: Label) -> None:
    assert (a | b) | c == a | (b | c)


@given(labels)
def test_join_is_idempotent_and_the_users_words_are_its_bottom(a: Label) -> None:
    assert a | a == a
    assert a | Label() == a


@given(labels, labels, labels)
def test_join_is_monotone(a: Label, b: Label, c: Label) -> None:
    """More inputs never give a more permissive label, and joining keeps the order."""
    assert a.permits(a | b)
    assert (a | b).sources >= a.sources
    assert a.readers is PUBLIC or (a | b).readers is not PUBLIC
    if a.permits(b):
        assert (a | c).permits(b | c)


@given(labels, labels)
def test_the_order_is_that_of_sources_and_readers(a: Label, b: Label) -> None:
    fewer_readers = a.readers is PUBLIC or (b.readers is not PUBLIC and b.readers <= a.readers)
    assert a.permits(b) == (a.sources <= b.sources and fewer_readers)
    if a.permits(b) and b.permits(a):
        assert a == b


def test_examples() -> None:
    page = Label(frozenset({"file:a"}), frozenset({"user", "bank"}))
    note = Label(frozenset({"file:b"}), frozenset({"user"}))
    assert page | note == Label(frozenset({"file:a", "file:b"}), frozenset({"user"}))
    assert (page | Label()).readers == {"user", "bank"}
    assert not note.permits(page)
