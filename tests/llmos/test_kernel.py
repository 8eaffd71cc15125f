"""The loop: what it yields, what the model is shown, and that it always ends."""

import threading
import time
from collections.abc import Iterator

import pytest

from trivium.errors import TriviumError
from trivium.llmos.chat_model import ScriptedModel
from trivium.llmos.gateway import Gateway
from trivium.llmos.kernel import Budget, extend, run
from trivium.llmos.messages import (
    Answer,
    Event,
    Failure,
    Finish,
    Message,
    ModelEvent,
    TextDelta,
    ToolCall,
    ToolResult,
    Usage,
)
from trivium.llmos.tools import tool


@tool
def double(number: int) -> str:
    """Twice a number.

    number: any whole number
    """
    return str(2 * number)


@tool(effect="execute")
def work(step: int) -> str:
    """Do something that changes the world.

    step: which step
    """
    return "done"


USER = (Message("user", "twice 21?"),)


def call(arguments: str = '{"number": 21}', name: str = "double", key: str = "c1") -> ToolCall:
    return ToolCall(key, name, arguments)


def gateway() -> Gateway:
    return Gateway((double, work))


def turn(model: ScriptedModel, **budget: float) -> list[Event]:
    return list(run(model, USER, gateway(), Budget(**budget)))  # type: ignore[arg-type]


def test_a_turn_with_a_tool() -> None:
    model = ScriptedModel(call(), "It is 42.")
    events = turn(model)
    assert [type(event).__name__ for event in events] == [
        "ToolCall",
        "ToolResult",
        *["TextDelta"] * 3,
        "Answer",
    ]
    assert isinstance(events[1], ToolResult) and events[1].content == "42"
    assert isinstance(events[-1], Answer) and events[-1].text == "It is 42."
    shown = model.calls[1]
    assert shown[1] == Message("assistant", "", (call(),))
    assert shown[2] == Message("tool", "42", tool_call_id="c1", name="double")


def test_usage_is_summed() -> None:
    model = ScriptedModel(
        (call(), Finish("tool_calls", Usage(10, 5))),
        (TextDelta("42"), Finish("stop", Usage(20, 1, cached_tokens=15))),
    )
    answer = turn(model)[-1]
    assert isinstance(answer, Answer) and answer.usage == Usage(30, 6, 15)


def test_mistakes_go_back_to_the_model() -> None:
    bad = (call("{", key="1"), call('{"number": "x"}', key="2"), call("{}", "nope", "3"))
    model = ScriptedModel(*bad, "I give up.")
    results = [event for event in turn(model) if isinstance(event, ToolResult)]
    assert len(results) == 3 and all(result.error for result in results)
    assert "nope" in results[2].content


def test_a_repeated_call_is_refused_then_ends_the_turn() -> None:
    events = turn(ScriptedModel(*[call(key=str(i)) for i in range(5)]))
    results = [event for event in events if isinstance(event, ToolResult)]
    assert [result.error for result in results] == [False, True, True]
    assert isinstance(events[-1], Failure) and events[-1].kind == "repeat"


def test_spelling_does_not_hide_a_repeat() -> None:
    model = ScriptedModel(call(), call('{ "number":21 }', key="2"), "ok")
    results = [event for event in turn(model) if isinstance(event, ToolResult)]
    assert [result.error for result in results] == [False, True]


def test_a_call_may_be_repeated_after_the_world_changed() -> None:
    model = ScriptedModel(call(), call('{"step": 1}', "work", "2"), call(key="3"), "ok")
    results = [event for event in turn(model) if isinstance(event, ToolResult)]
    assert not any(result.error for result in results)


def test_steps_run_out() -> None:
    replies = [call(f'{{"number": {i}}}', key=str(i)) for i in range(5)]
    events = turn(ScriptedModel(*replies), steps=3)
    assert isinstance(events[-1], Failure) and events[-1].kind == "steps"
    assert sum(isinstance(event, ToolResult) for event in events) == 3


@pytest.mark.parametrize(
    ("budget", "kind"), [({"tokens": 20}, "tokens"), ({"seconds": 0.05}, "seconds")]
)
def test_an_endless_reply_is_cut(budget: dict[str, float], kind: str) -> None:
    closed = threading.Event()

    def endless() -> Iterator[ModelEvent]:
        try:
            while True:
                time.sleep(0.001)
                yield TextDelta("la ")
        finally:
            closed.set()

    events = turn(ScriptedModel(endless()), **budget)
    assert isinstance(events[-1], Failure) and events[-1].kind == kind
    assert closed.is_set(), "the model goes on generating"


def test_cancel() -> None:
    cancelled = threading.Event()
    events = []
    for event in run(ScriptedModel("one two three four"), USER, gateway(), cancelled=cancelled):
        events.append(event)
        if len(events) == 2:
            cancelled.set()
    assert isinstance(events[-1], Failure) and events[-1].kind == "cancelled"
    assert len(events) <= 4


@pytest.mark.parametrize("reply", ["", "  \n"])
def test_an_empty_reply_is_a_failure(reply: str) -> None:
    events = turn(ScriptedModel(reply))
    assert isinstance(events[-1], Failure) and events[-1].kind == "model"


def test_errors_of_the_model_are_raised() -> None:
    def broken(_: object) -> str:
        raise TriviumError("the endpoint is gone")

    with pytest.raises(TriviumError, match="endpoint"):
        turn(ScriptedModel(broken))


def test_extend_rebuilds_what_the_model_saw() -> None:
    model = ScriptedModel(
        (TextDelta("Let me see. "), call(), Finish("tool_calls")),
        call('{"number": 42}', key="c2"),
        "It is 84.",
    )
    history = extend(USER, turn(model))
    assert history[: len(model.calls[-1])] == list(model.calls[-1])
    assert history[-1] == Message("assistant", "It is 84.")


def test_extend_notes_a_call_without_a_result() -> None:
    events: list[Event] = [TextDelta("I will "), call(), ToolResult(call(), "42"), call(key="c2")]
    history = extend(USER, events)
    assert [message.role for message in history] == ["user", *["assistant", "tool"] * 2]
    assert history[1] == Message("assistant", "I will ", (call(),))
    assert history[3].tool_calls == (call(key="c2"),) and "interrupted" in history[4].text


def test_calls_of_one_step_are_kept_apart() -> None:
    both = (call(), call('{"number": 4}', key="c2"), Finish("tool_calls"))
    model = ScriptedModel(both, "42 and 8")
    history = extend(USER, turn(model))
    assert history[: len(model.calls[-1])] == list(model.calls[-1])
    assert [message.text for message in history if message.role == "tool"] == ["42", "8"]
