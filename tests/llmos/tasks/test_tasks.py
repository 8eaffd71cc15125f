"""What each task asks, and what it makes of the answers."""

from collections.abc import Callable
from typing import Any

import pytest

from trivium.errors import UsageError
from trivium.llmos.tasks import (
    Answer,
    Classify,
    Example,
    Extract,
    Fill,
    Sentiment,
    Summarise,
    Translate,
)
from trivium.llmos.tasks.asking import Choice, ItemError, Outcome, Prompt

Actor = Callable[..., Any]
TEXT = "Anna met Ben. Ben was late."


def test_a_prompt_as_turns_and_as_one_text() -> None:
    prompt = Prompt("Which?", "new", (("old", "yes"),), "Review", "Sentiment")
    turns = [(message.role, message.text) for message in prompt.messages]
    assert turns == [
        ("user", "Which?\n\nReview: old"),
        ("assistant", "yes"),
        ("user", "Which?\n\nReview: new"),
    ]
    assert prompt.continued == "Which?\n\nReview: old\nSentiment: yes\n\nReview: new\nSentiment:"


def test_classify_weighs_the_pieces_of_a_long_text(actor: Actor) -> None:
    shares = {"one two three": 0.9, "four": 0.1}
    asker = actor(lambda text: Choice("a", {"a": (p := shares[text.strip()]), "b": 1 - p}), room=3)
    task = Classify(("a", "b"), probabilities=True)
    assert task.run(asker, "one two three\n\nfour").value == {
        "label": "a",
        "probability": 0.7,  # (3 · 0.9 + 1 · 0.1) / 4
        "probabilities": {"a": 0.7, "b": 0.3},
    }


def test_a_label_without_likelihood(actor: Actor) -> None:
    asker = actor(lambda text: Choice("negative"))
    assert Sentiment().run(asker, "Bad.").value == {"sentiment": "negative", "probability": None}


def test_extract_tells_where_names_stand(actor: Actor) -> None:
    named = [{"text": name, "type": "person"} for name in ("Ben", "Anna", "Ben", "Ben")]
    task = Extract(("person",))
    found = task.run(actor(lambda text: {"entities": named}), TEXT).value["entities"]
    assert [(one["text"], one["start"]) for one in found] == [("Anna", 0), ("Ben", 9), ("Ben", 14)]
    assert all(TEXT[one["start"] : one["end"]] == one["text"] for one in found)


def test_places_in_a_text_of_several_pieces(actor: Actor) -> None:
    text = "Anna came. " * 60  # 120 words: more than fit
    asker = actor(
        lambda text: {"entities": [{"text": "Anna", "type": "person"}] * text.count("Anna")},
        room=40,
    )
    found = Extract(("person",)).run(asker, text).value["entities"]
    assert [one["start"] for one in found] == list(range(0, len(text), 11))
    assert len(asker.asked) >= 3


def test_translate_keeps_the_space_between_pieces(actor: Actor) -> None:
    text = "  ein zwei\n\n\ndrei vier\n"
    asker = actor(lambda text: {"translation": f" {text.upper()} "}, room=2)
    task = Translate(to="English")
    assert task.run(asker, text).value == {"translation": text.upper()}
    assert "English" in asker.asked[0].instruction


def test_summaries_of_pieces_are_summarised(actor: Actor) -> None:
    asker = actor(lambda text: {"summary": text.split()[0] + "."}, room=4)
    assert Summarise().run(asker, "a b c d\n\ne f g h").value == {"summary": "a.."}
    assert [prompt.text.strip() for prompt in asker.asked] == ["a b c d", "e f g h", "a.\n\ne."]


def test_summaries_that_do_not_shorten_are_an_error(actor: Actor) -> None:
    asker = actor(lambda text: {"summary": text + text}, room=4)
    with pytest.raises(ItemError, match="longer than the text"):
        Summarise().run(asker, "a b c d\n\ne f g h")


@pytest.mark.parametrize(
    "said, kept, cut",
    [
        (Outcome({"summary": "One two. Three"}, cut=True), "One two.", False),
        (Outcome({"summary": "One two three"}, cut=True), "One two three", True),
        ({"summary": "One. Two three four five"}, "One.", False),  # the most that it may have
        ({"summary": "一。二三。"}, "一。二三。", False),
    ],
)
def test_a_summary_ends_with_a_sentence(actor: Actor, said: Any, kept: str, cut: bool) -> None:
    assert Summarise(words=5).run(actor(lambda text: said), "A text.") == Outcome(
        {"summary": kept}, cut
    )


def test_answer_asks_the_likeliest_piece_first(actor: Actor) -> None:
    document = "Apples are red fruit.\n\nThe picnic is on Saturday.\n\nRoads are long here."

    def plays(text: str) -> Any:
        if "Saturday" not in text:
            return {"quote": None, "answer": None}
        return {"quote": " on Saturday", "answer": "Saturday"}

    asker = actor(plays, room=40)
    task = Answer(question="When is the picnic?")
    asker._room = 25  # 25 − 20 for the question: a paragraph at a time
    assert task.run(asker, document).value == {"answer": "Saturday", "quote": "on Saturday"}
    assert len(asker.asked) == 1 and "picnic is on" in asker.asked[0].text


def test_what_no_piece_tells_is_null(actor: Actor) -> None:
    asker = actor(lambda text: {"quote": None, "answer": None}, room=20)
    task = Answer(document="One two three.\n\nFour five six.")
    assert task.run(asker, "Why?").value == {"answer": None, "quote": None}
    assert len(asker.asked) == 2


def test_examples_are_shown_in_the_form_that_is_asked_for(actor: Actor) -> None:
    task = Sentiment(
        examples=(Example("Good.", "positive"), Example("x", {"sentiment": "neutral"}))
    )
    assert task.prompt.shown == (("Good.", "positive"), ("x", "neutral"))
    translated = Translate(to="German", examples=(Example("one", "eins"),))
    assert translated.prompt.shown == (("one", '{"translation": "eins"}'),)


ANSWERS = {"text": "Bob", "type": "person"}


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Classify(("a",)), "two or more different labels"),
        (lambda: Classify(("a", " a")), "two or more different labels"),
        (lambda: Extract(()), "must not be empty"),
        (lambda: Answer(), "either a question or a document"),
        (lambda: Answer(question="q", document="d"), "either a question or a document"),
        (lambda: Fill(["a"]), "must be an object"),
        (lambda: Fill({"type": "strin"}), "invalid JSON schema: at \\$.type"),
        (lambda: Sentiment(examples=(Example("x", "great"),)), "the output of example 1"),
        (
            lambda: Extract(examples=(Example("Anna", {"entities": [ANSWERS]}),)),
            "is wrong: 'Bob' is not in the text",
        ),
    ],
)
def test_wrong_tasks(make: Callable[[], object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make()


def test_fingerprints_tell_tasks_apart() -> None:
    tasks = [
        Sentiment(),
        Sentiment(calibrated=False),
        Sentiment(instruction="Of the film."),
        Sentiment(examples=(Example("x", "neutral"),)),
        Classify(("positive", "negative", "neutral")),
        Translate(to="French"),
        Translate(to="German"),
    ]
    assert len({task.fingerprint for task in tasks}) == len(tasks)
    assert Sentiment().fingerprint == tasks[0].fingerprint
