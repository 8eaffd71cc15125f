"""Who answers: an engine under a grammar, whose labels are weighed, or any chat model, checked."""

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from trivium.errors import NotFound, UsageError
from trivium.language.engine import Engine
from trivium.llmos.chat_model import ScriptedModel
from trivium.llmos.messages import Finish, TextDelta
from trivium.llmos.tasks import (
    Answer,
    Classify,
    Example,
    Extract,
    Fill,
    Summarise,
    Translate,
    open_asker,
    read_examples,
)
from trivium.llmos.tasks.asking import Form, ItemError, Prompt
from trivium.llmos.tasks.local import CONTENT_FREE, EngineAsker
from trivium.llmos.tasks.remote import ChatAsker, strict

TEXT = 'Anna met Ben in "Rome" on Monday,\n12 May. 日本'
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 9}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


# -- an engine ----------------------------------------------------------------------------------


@pytest.fixture
def asker(make_engine: Callable[..., Engine]) -> Iterator[EngineAsker]:
    with EngineAsker(make_engine()) as asker:
        yield asker


@pytest.mark.parametrize(
    "task",
    [
        Extract(),
        Summarise(words=5),
        Translate(to="German", max_tokens=24),
        Answer(question="Who met?", max_tokens=40),
        Fill(PERSON, max_tokens=60),
        Fill(PERSON, max_tokens=2),  # has to be closed
        Fill(PERSON, examples=(Example("Eva, 4", {"name": "Eva", "age": 4}),), max_tokens=60),
    ],
    ids=lambda task: f"{task.name}-{task.max_tokens}",
)
def test_answers_have_their_form(asker: EngineAsker, task: Any) -> None:
    """Of a model that knows nothing at all."""
    value = task.run(asker, TEXT).value
    if isinstance(task, Extract):
        assert all(TEXT[one["start"] : one["end"]] == one["text"] for one in value["entities"])
        places = [one["start"] for one in value["entities"]]
        assert places == sorted(set(places))
    elif isinstance(task, Answer):
        assert (value["quote"] is None) is (value["answer"] is None)
        assert value["quote"] is None or value["quote"] in TEXT
    elif isinstance(task, Summarise):
        assert 1 <= len(value["summary"].split()) <= 5
    elif isinstance(task, Translate):
        assert value["translation"]
    else:
        assert isinstance(value["name"], str) and isinstance(value["age"], int)


def test_a_cut_answer_says_so(asker: EngineAsker) -> None:
    assert Fill(PERSON, max_tokens=2).run(asker, TEXT).cut
    assert not Fill({"const": 1}, max_tokens=20).run(asker, TEXT).cut


@pytest.mark.parametrize("labels", [("sport", "politics"), ("May", "Monday", "Mon")])
@pytest.mark.parametrize("calibrated", [False, True])
def test_probabilities_are_those_of_the_engine(
    make_engine: Callable[..., Engine], labels: tuple[str, ...], calibrated: bool
) -> None:
    """Equation 1 of Zhao et al., written out."""
    engine = make_engine()
    task = Classify(labels, calibrated=calibrated, probabilities=True)
    with EngineAsker(engine) as asker:
        value = task.run(asker, TEXT).value
        continuations = asker._continuations(labels)

    def p(text: str) -> list[float]:
        prompt = engine.tokenizer.encode(task.prompt.about(text).continued, wrap=True)
        likely = [math.exp(sum(row)) for row in engine.score(prompt, continuations)]
        return [one / sum(likely) for one in likely]

    weights = p(TEXT)
    if calibrated:
        empty = [p(text) for text in CONTENT_FREE]
        prior = [sum(column) / len(empty) for column in zip(*empty, strict=True)]
        weights = [one / usual for one, usual in zip(weights, prior, strict=True)]
    expected = [weight / sum(weights) for weight in weights]
    assert list(value["probabilities"].values()) == pytest.approx(expected, abs=2e-6)
    assert value["label"] == labels[expected.index(max(expected))]


def test_labels_that_begin_alike_get_an_end(asker: EngineAsker) -> None:
    (first, *_), (other, *_) = asker._continuations(["May", "June"])
    assert first != other
    short, long = asker._continuations(["a", "a b"])
    assert short != long[: len(short)], "else the short one could never lose"


def test_long_instructions_leave_no_room(make_engine: Callable[..., Engine]) -> None:
    task = Translate(to="German", instruction="x y z " * 40)
    with (
        EngineAsker(make_engine(context=64)) as asker,
        pytest.raises(UsageError, match="leave no room"),
    ):
        task.run(asker, TEXT)


def test_a_model_without_a_template_continues_one_text(make_engine: Callable[..., Engine]) -> None:
    with EngineAsker(make_engine(template=False)) as asker:
        assert asker._ids(Prompt("Say.", "x")) == asker._continued(Prompt("Say.", "x"))
        assert Fill({"enum": [1, 2]}).run(asker, TEXT).value in (1, 2)


def test_after_cancel_nothing_is_asked(asker: EngineAsker) -> None:
    asker.cancel()
    for task in (Fill(PERSON), Classify(("a", "b"))):
        with pytest.raises(ItemError):
            task.run(asker, TEXT)


# -- a chat model -------------------------------------------------------------------------------


def chat(*replies: Any) -> tuple[ChatAsker, ScriptedModel]:
    model = ScriptedModel(*replies)
    return ChatAsker("chat", lambda form, max_tokens: model), model


ANNA = '{"name": "Anna", "age": 31}'


@pytest.mark.parametrize("said", [ANNA, f"```json\n{ANNA}\n```", f"  ```\n{ANNA}\n```\n"])
def test_answers_are_read_as_json(said: str) -> None:
    asker, _ = chat(said)
    assert Fill(PERSON).run(asker, TEXT).value == {"name": "Anna", "age": 31}


@pytest.mark.parametrize(
    "wrong, complaint",
    [
        ("Sure! Anna.", "the answer is not JSON"),
        ('{"name": "Anna"}', "'age' is a required property"),
        ('{"name": 3, "age": 3}', "at $.name: 3 is not of type 'string'"),
        ("[" * 100_000, "the answer is not JSON"),
    ],
)
def test_a_wrong_answer_is_sent_back_once(wrong: str, complaint: str) -> None:
    asker, model = chat(wrong, ANNA)
    assert Fill(PERSON).run(asker, TEXT).value["name"] == "Anna"
    assert complaint in model.calls[1][-1].text
    asker, _ = chat(wrong, wrong)
    with pytest.raises(ItemError) as error:
        Fill(PERSON).run(asker, TEXT)
    assert complaint in str(error.value)


def test_a_quote_must_stand_in_the_document() -> None:
    good, bad = ({"quote": quote, "answer": "x"} for quote in ("Anna met Ben", "Anna kissed Ben"))
    asker, model = chat(json.dumps(bad), json.dumps(good))
    assert Answer(question="Who?").run(asker, TEXT).value["quote"] == "Anna met Ben"
    assert "is not in the document, word for word" in model.calls[1][-1].text


def test_labels_of_a_chat_model() -> None:
    asker, model = chat('{"label": "sport"}')
    task = Classify(("sport", "politics"), examples=(Example("War.", "politics"),))
    assert task.run(asker, TEXT).value == {"label": "sport", "probability": None}
    assert model.calls[0][1].text == '{"label": "politics"}'


@pytest.mark.parametrize("reason", ["length", "content_filter"])
def test_answers_that_did_not_end(reason: Any) -> None:
    asker, _ = chat([TextDelta(ANNA[:9]), Finish(reason)])
    with pytest.raises(ItemError):
        asker.ask(Prompt("Say.", TEXT), Form(PERSON), 10)


CLOSED = {"type": "object", "properties": {}, "additionalProperties": False}


@pytest.mark.parametrize(
    "schema, expected",
    [
        (PERSON, True),
        ({"type": "string"}, True),
        ({**PERSON, "required": ["name"]}, False),
        ({"type": "object"}, False),
        ({"type": "array", "items": {"type": "object"}}, False),
        ({"anyOf": [CLOSED, {"type": "object", "properties": {"a": {}}}]}, False),
        ({"anyOf": [CLOSED]}, True),
    ],
)
def test_which_schemas_an_endpoint_takes_as_strict(schema: Any, expected: bool) -> None:
    assert strict(schema) is expected


# -- models and examples by name ----------------------------------------------------------------


def test_models_that_are_not_there() -> None:
    with pytest.raises(NotFound):
        open_asker("./none.gguf")
    with pytest.raises(UsageError, match="OPENAI_BASE_URL"):
        open_asker("remote:x")


@pytest.mark.parametrize(
    "content, message",
    [
        (None, "no such file"),
        ('{"input": "a"}\n', "example 1 must be"),
        ('{"input": "a", "output": 1}\n{"input": 2, "output": 1}\n', "example 2 must be"),
        ("{nope\n", "nope|JSON"),
    ],
)
def test_wrong_examples(tmp_path: Path, content: str | None, message: str) -> None:
    path = tmp_path / "examples.jsonl"
    if content is not None:
        path.write_text(content)
    with pytest.raises((NotFound, UsageError), match=message):
        read_examples(path)
