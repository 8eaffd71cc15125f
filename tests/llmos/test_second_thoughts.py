"""What gives cause for doubt in a call, and what is called instead."""

import json

import pytest
import torch

from trivium.language.beam import Hypothesis
from trivium.language.engine import ContextOverflow, Engine
from trivium.language.pretrained import LanguageModel
from trivium.language.tokenizer import Tokenizer
from trivium.language.transformer import Transformer, TransformerConfig
from trivium.llmos import second_thoughts
from trivium.llmos.messages import Message, ToolCall
from trivium.llmos.native_tools import HERMES
from trivium.llmos.second_thoughts import COST, doubts, reconsidered


@pytest.fixture(scope="module")
def language_model() -> LanguageModel:
    tokenizer = Tokenizer.train(["12 trays of 8 rolls", "calculate the expression"], 300)
    torch.manual_seed(0)
    config = TransformerConfig(
        vocab_size=tokenizer.vocab_size, context=256, width=32, layers=2, heads=2, hidden=32
    )
    return LanguageModel("tiny", Transformer(config).eval(), tokenizer, None, "float32")


def call(name: str, **arguments: str) -> ToolCall:
    return ToolCall("1", name, json.dumps(arguments, ensure_ascii=False))


def at(hour: int, minute: int) -> str:
    return f"datetime.datetime(2024, 1, 1, {hour}, {minute})"


@pytest.mark.parametrize(
    ("request_", "name", "arguments", "expected"),
    [
        ("12 trays of 8 rolls, 5 burnt", "calculate", {"expression": "12 * 8 - 5"}, 0),
        ("12 trays of 8 rolls, 5 burnt", "calculate", {"expression": "12 * 8"}, 1),
        ("12 trays of 8 rolls, 5 burnt", "calculate", {"expression": "5 - 12 * 8"}, 1),
        ("12 trays of 8 rolls, 5 burnt", "calculate", {"expression": "12 * 83 - 5"}, 2),
        ("12 trays of 8 rolls, 5 burnt", "calculate", {"expression": "12 * (8"}, 2),
        ("three weeks at 1,200 a day", "calculate", {"expression": "3 * 7 * 1200"}, 0),
        ("15% of 80.50", "calculate", {"expression": "15% of 80.5"}, 0),
        ("open plan.md in docs", "read_file", {"path": "docs/plan.md"}, 0),
        ("open plan.md in docs", "read_file", {"path": "docs/plans.md"}, 2),
        ("what is here?", "list_files", {"path": "."}, 0),
        ("what is here?", "list_files", {}, 0),
        ("帮我看看 作业/数学.txt", "read_file", {"path": "作业/数学.txt"}, 0),
        ("帮我看看 作业/数学.txt", "read_file", {"path": "作业/语文.txt"}, 2),
        ("note milk and eggs in a.txt", "write_file", {"path": "a.txt", "text": "milk\neggs"}, 0),
        ("note milk and eggs in a.txt", "write_file", {"path": "a.txt", "text": "mlk"}, 2),
        ("which day is it", "python", {"code": "print(1)"}, 0),
        ("from 09:45 to 13:05", "python", {"code": f"print({at(13, 5)} - {at(9, 45)})"}, 0),
        ("from 9.45 to 1.05 pm", "python", {"code": f"print({at(13, 5)} - {at(9, 45)})"}, 0),
        ("from 09:45 to 13:05", "python", {"code": f"print({at(13, 5)} - {at(9, 50)})"}, 2),
        ("weekday of 4 May 1999", "python", {"code": "print(datetime.date(1999, 5, 4))"}, 0),
        ("weekday of 4th May 1999", "python", {"code": "print(datetime.date(1989, 5, 4))"}, 2),
        ("turn 'Lamp' round", "python", {"code": "print('lamp'[::-1])"}, 0),
        ("turn 'Lamp' round", "python", {"code": "print('lamb'[::-1])"}, 1),
        ("the 3rd of a, b, c", "python", {"code": "print('a, b, c'.split(', ')[2])"}, 0),
        ("odd numbers to 1,000", "python", {"code": "print(list(range(1, 1001, 2)))"}, 0),
        ("the weekday", "python", {"code": "print(datetime.date.today().strftime('%A'))"}, 0),
        ("days in all", "python", {"code": "print((1"}, 3),
    ],
)
def test_doubts(request_: str, name: str, arguments: dict[str, str], expected: int) -> None:
    assert doubts(call(name, **arguments), [Message("user", request_)]) == expected


def test_what_tools_gave_was_said() -> None:
    messages = [
        Message("user", "what is in docs?"),
        Message("assistant", "", (call("list_files", path="docs"),)),
        Message("tool", "docs/plan.md (1 kB)", name="list_files"),
        Message("user", "open it"),
    ]
    assert doubts(call("read_file", path="docs/plan.md"), messages) == 0


def test_arguments_that_are_no_json_are_doubtful() -> None:
    assert doubts(ToolCall("1", "calculate", "{"), [Message("user", "2 + 2")]) == 1


MESSAGES = [Message("user", "12 trays of 8 rolls, 5 burnt")]
WRONG, RIGHT = "12 * 8", "12 * 8 - 5"


@pytest.mark.parametrize(
    ("behind", "chosen"), [(COST - 0.1, RIGHT), (COST + 0.1, WRONG)], ids=["likely", "unlikely"]
)
def test_the_likelier_of_the_less_doubtful(
    language_model: LanguageModel, monkeypatch: pytest.MonkeyPatch, behind: float, chosen: str
) -> None:
    found = [
        Hypothesis((1,), f' {{"expression": "{text}"}}}}\n</tool_call>', score, "stop")
        for text, score in ((WRONG, -1.0), (RIGHT, -1.0 - behind))
    ]
    found.append(Hypothesis((1,), ' {"expression', -0.5, "length"))
    monkeypatch.setattr(second_thoughts, "beam_search", lambda *_, **__: found)
    first = call("calculate", expression=WRONG)
    better = reconsidered(Engine(language_model), [1, 2], HERMES, first, MESSAGES)
    assert better.parsed() == {"expression": chosen}
    assert (better.id, better.name) == (first.id, first.name)


def test_without_doubt_nothing_is_computed(language_model: LanguageModel) -> None:
    first = call("calculate", expression=RIGHT)
    engine = Engine(language_model)
    assert reconsidered(engine, [1, 2], HERMES, first, MESSAGES) is first
    assert engine.slots.tokens == 0


def test_a_model_that_finds_nothing_better_keeps_its_call(
    language_model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Untrained weights write no JSON; and there may be no room in the context."""
    first = call("calculate", expression=WRONG)
    engine = Engine(language_model)
    assert reconsidered(engine, [1, 2], HERMES, first, MESSAGES) == first

    def full(*_: object, **__: object) -> list[Hypothesis]:
        raise ContextOverflow("full")

    monkeypatch.setattr(second_thoughts, "beam_search", full)
    assert reconsidered(engine, [1, 2], HERMES, first, MESSAGES) == first
