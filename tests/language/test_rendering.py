"""What carries loss in a conversation: the assistant's words and their end token, nothing else."""

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.language.test_chat_template import TEMPLATES, TOKENIZER, TOOL

from trivium.errors import UsageError
from trivium.language.chat_template import ChatTemplate
from trivium.language.rendering import _covered, render
from trivium.language.tokenizer import Tokenizer

Messages = list[dict[str, Any]]


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def says(text: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


CALL = {"type": "function", "function": {"name": "calculate", "arguments": '{"a": "é<b"}'}}
TALK = [user(" 2 < 3?\n"), says("True."), user("Why? <|im_end|>"), says("更大 🙂")]
THOUGHT = [
    user("2 < 3?"),
    says("<think>\nhm\n</think>\n\nTrue."),
    user("Why?"),
    says("yes", reasoning_content="aha"),
]
TOOLS = [
    {"role": "system", "content": "Be brief."},
    user("2+2?"),
    says("", tool_calls=[CALL]),
    {"role": "tool", "content": "4", "tool_call_id": "1"},
    says("Four."),
]


def learnt(
    name: str, messages: Messages, tools: Any = None, template: ChatTemplate | None = None
) -> list[str]:
    """The runs of tokens that carry loss, as text; checks the ids."""
    template = template or TEMPLATES[name]
    ids, mask = render(TOKENIZER, template, messages, tools)
    plain = [{k: v for k, v in message.items() if k != "weight"} for message in messages]
    assert ids == template.encode(TOKENIZER, plain, tools, add_generation_prompt=False)
    assert len(ids) == len(mask)
    return runs(TOKENIZER, ids, mask)


def runs(tokenizer: Tokenizer, ids: Sequence[int], mask: Sequence[bool]) -> list[str]:
    found: list[list[int]] = []
    for id, mine, before in zip(ids, mask, [False, *mask[:-1]], strict=True):
        if mine and not before:
            found.append([])
        if mine:
            found[-1].append(id)
    return [tokenizer.decode(run, skip_special=False) for run in found]


@pytest.mark.parametrize(
    ("name", "end"),
    [
        ("chatml", "<|im_end|>"),
        ("training", "<|im_end|>"),
        ("llama-3", "<|eot_id|>"),
        ("mistral", "</s>"),
        ("qwen2.5", "<|im_end|>"),
        ("gemma", "<end_of_turn>"),
    ],
)
def test_turns_and_their_end_tokens(name: str, end: str) -> None:
    assert learnt(name, TALK) == [f"True.{end}", f"更大 🙂{end}"]
    cut = [*TALK[:2], user("Why?")]
    assert learnt(name, cut) == [f"True.{end}"]
    weighed = [TALK[0], says("True.", weight=0), TALK[2], says("更大", weight=1)]
    assert learnt(name, weighed) == [f"更大{end}"]
    assert learnt(name, TALK[:1]) == []
    same = [user("yes"), says("yes"), user("yes"), says("yes")]
    assert learnt(name, same) == [f"yes{end}"] * 2


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        # Thoughts of a turn that others follow are not in the text, so nothing of them is learnt.
        ("qwen3", ["True.<|im_end|>", "<think>\naha\n</think>\n\nyes<|im_end|>"]),
        ("chatml", ["<think>\nhm\n</think>\n\nTrue.<|im_end|>", "yes<|im_end|>"]),
    ],
)
def test_thoughts(name: str, wanted: list[str]) -> None:
    assert learnt(name, THOUGHT) == wanted


@pytest.mark.parametrize(
    ("name", "call"),
    [
        (
            "qwen2.5",
            '<tool_call>\n{"name": "calculate", "arguments": {"a": "é<b"}}\n</tool_call><|im_end|>',
        ),
        ("llama-3", '{"name": "calculate", "parameters": {"a": "é<b"}}<|eot_id|>'),
    ],
)
def test_calls_of_tools(name: str, call: str) -> None:
    end = call[call.rindex("<|") :]
    assert learnt(name, TOOLS, [TOOL]) == [call, f"Four.{end}"]
    last = [*TOOLS[:2], says("", tool_calls=[CALL])]
    assert learnt(name, last, [TOOL]) == [call]


PLAIN = (
    "{% for m in messages %}{{ 'Q: ' if m.role == 'user' else 'A: ' }}{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}A: {% endif %}"
)
ENDLESS = (
    "{% for m in messages %}{% if m.role == 'user' %}Q: {{ m.content }}<|im_end|>"
    "{% else %}A: {{ m.content }}\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}A: {% endif %}"
)
TAGGED = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content | trim }}<|im_end|>\n{% endgeneration %}"
    "{% else %}{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
)


@pytest.mark.parametrize(
    ("source", "wanted"),
    [
        (PLAIN, ["True.", "A: A:"]),
        (ENDLESS, ["True.", "A: A:"]),  # the end token behind the next question is not the turn's
        (TAGGED, ["True.<|im_end|>\n", "A: A:<|im_end|>\n"]),  # taken at its word
    ],
    ids=["plain", "endless", "tagged"],
)
def test_other_templates(source: str, wanted: list[str]) -> None:
    messages = [user("A: 2<3?"), says("True."), user("A: A:"), says("A: A:")]
    assert learnt("", messages, template=ChatTemplate(source)) == wanted


CONTENT = st.text("ab <|im_end>\n本🙂", min_size=1).filter(lambda text: text == text.strip())


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(["chatml", "llama-3", "qwen2.5", "gemma"]),
    st.lists(st.tuples(CONTENT, CONTENT), min_size=1, max_size=3),
)
def test_learnt_is_what_the_model_would_say_after_the_prompt(
    name: str, turns: list[tuple[str, str]]
) -> None:
    """Where the text before a turn stays as it was, prompt and turn are its beginning."""
    messages = [m for question, answer in turns for m in (user(question), says(answer))]
    template = TEMPLATES[name]
    found = learnt(name, messages)
    assert len(found) == len(turns)
    ids, _ = render(TOKENIZER, template, messages)
    for i, said in enumerate(found):
        prompt = template.encode(TOKENIZER, messages[: 2 * i + 1], add_generation_prompt=True)
        text = TOKENIZER.decode([*prompt], skip_special=False) + said
        assert TOKENIZER.decode(ids, skip_special=False).startswith(text)
        assert said.startswith(turns[i][1])
        rest = said.removeprefix(turns[i][1])
        assert TOKENIZER.control_tokens[rest.strip()] in TOKENIZER.stop_ids


@pytest.mark.parametrize(
    ("places", "spans", "wanted"),
    [
        # "ab:", " hello", "  ", "<end>": the tokenizer does not count spaces
        ([(0, 3), (4, 9), (11, 11), (11, 16)], [(3, 16)], [0, 1, 1, 1]),
        ([(0, 3), (4, 9), (11, 11), (11, 16)], [(3, 4), (10, 11)], [0, 1, 1, 0]),
        ([(0, 1), (0, 1), (1, 2)], [(0, 1)], [1, 1, 0]),  # a character of two tokens
        ([(0, 2), (2, 4), (4, 6)], [(3, 4)], [0, 1, 0]),
        ([(0, 2)], [], [0]),
        ([], [], []),
    ],
)
def test_tokens_that_reach_into_a_turn(
    places: list[tuple[int, int]], spans: list[tuple[int, int]], wanted: list[int]
) -> None:
    assert _covered(places, spans) == [bool(mine) for mine in wanted]


def test_what_cannot_be_learnt_is_said() -> None:
    with pytest.raises(UsageError, match="leaves out message 3, of the assistant"):
        learnt("chatml", TOOLS, [TOOL])
    with pytest.raises(UsageError, match="refuses the messages"):
        learnt("mistral", TOOLS)
    twice = "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}"
    with pytest.raises(UsageError, match="marks 4 turns of the assistant where there are 2"):
        learnt("", [*TALK[:3], says("a", weight=0)], template=ChatTemplate(twice))


@pytest.mark.published
def test_the_default_model(default_model: Any) -> None:
    from trivium.gguf_file import GGUFFile

    metadata = GGUFFile(default_model).metadata
    tokenizer, template = Tokenizer.from_gguf(metadata), ChatTemplate.from_gguf(metadata)
    assert template is not None
    ids, mask = render(tokenizer, template, TALK)
    assert runs(tokenizer, ids, mask) == ["True.<|im_end|>", "更大 🙂<|im_end|>"]
    assert tokenizer.decode(ids, skip_special=False).startswith("<|im_start|>system\nYou are")
