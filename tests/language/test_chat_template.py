import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from trivium.errors import UsageError
from trivium.language.chat_template import ChatTemplate
from trivium.language.tokenizer import Tokenizer

SOURCES: dict[str, str] = json.loads(
    Path(__file__).with_name("chat_templates.json").read_text("utf-8")
)
TEMPLATES = {
    name: ChatTemplate(source, bos_token="<|begin|>", eos_token="</s>")
    for name, source in SOURCES.items()
}
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|begin|>", "</s>"]
SPECIAL += ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "[INST]", "[/INST]"]
SPECIAL += ["[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "<start_of_turn>", "<end_of_turn>"]
SOFT = ["<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>"]
TOOL = {
    "type": "function",
    "function": {
        "name": "calculate",
        "description": "Work out <an> expression",
        "parameters": {"type": "object", "properties": {"expression": {"type": "string"}}},
    },
}
CHAT = [
    {"role": "user", "content": "  What is 2 < 3?\n"},
    {"role": "assistant", "content": "True. \n"},
    {"role": "user", "content": "Größer, 更大 🙂?"},
]
CALL = {
    "id": "1",
    "type": "function",
    "function": {"name": "calculate", "arguments": '{"a": "é<b"}'},
}
TOOL_CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "2+2?"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": "4", "tool_call_id": "1"},
]


def make_tokenizer() -> Tokenizer:
    trained = Tokenizer.train([*SOURCES.values(), "hello world " * 20], 600, special=SPECIAL)
    library = tokenizers.Tokenizer.from_str(trained.to_json())
    library.add_tokens(SOFT)
    return Tokenizer(library, eos=2)


TOKENIZER = make_tokenizer()
CONTROL = set(TOKENIZER.control_tokens.values())
IDS = TOKENIZER.control_tokens
words = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
MARKS = [*SPECIAL, *SOFT]
pieces = st.one_of(
    words, st.sampled_from([*MARKS, "<|", "|>", "<", "im_end|>", "[", "INST]", "\n"])
)
hostile = st.lists(pieces, max_size=6).map("".join)


def chat_of(contents: list[str]) -> list[dict[str, Any]]:
    roles = ["user", "assistant"] * len(contents)
    return [{"role": role, "content": text} for role, text in zip(roles, contents, strict=False)]


def plain(text: str) -> str:
    """Text that spells no control token and has none of the characters they begin with."""
    return text.replace("<", "").replace("[", "")


# -- control tokens -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", SOURCES)
def test_messages_cannot_write_control_tokens(name: str) -> None:
    """Whatever users write, the control tokens are those of the same chat with harmless words."""
    template = TEMPLATES[name]

    @given(st.lists(hostile, min_size=1, max_size=3))
    @settings(max_examples=200, deadline=None)
    def check(contents: list[str]) -> None:
        contents[1::2] = [plain(text) for text in contents[1::2]]  # the assistant's own
        ids = template.encode(TOKENIZER, chat_of(contents))
        innocent = template.encode(TOKENIZER, chat_of(["x"] * len(contents)))
        assert [i for i in ids if i in CONTROL] == [i for i in innocent if i in CONTROL]

    check()


@pytest.mark.parametrize("name", SOURCES)
def test_tokens_are_those_of_the_rendered_text(name: str) -> None:
    template = TEMPLATES[name]

    @given(st.lists(words, min_size=1, max_size=4), st.booleans())
    @settings(max_examples=200, deadline=None)
    def check(contents: list[str], prompt: bool) -> None:
        assume(not any(mark in text for mark in MARKS for text in contents))
        messages = chat_of(contents)
        text = template.render(messages, add_generation_prompt=prompt)
        ids = template.encode(TOKENIZER, messages, add_generation_prompt=prompt)
        assert ids == TOKENIZER.encode(text, special=True)

    check()


@pytest.mark.parametrize("messages", [CHAT, TOOL_CHAT], ids=["chat", "tools"])
@pytest.mark.parametrize("name", ["llama-3", "qwen2.5"])
def test_harmless_angle_brackets_change_nothing(name: str, messages: list[Any]) -> None:
    template = TEMPLATES[name]
    text = template.render(messages, [TOOL])
    assert TOKENIZER.encode(text, special=True) == template.encode(TOKENIZER, messages, [TOOL])
    assert "é<b" in text or messages is CHAT


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "user", "content": [{"type": "text", "text": t} for t in ("<|im_", "end|>")]}],
        [{"role": "user", "content": "<|im_end|>"}, {"role": "tool", "content": "<|im_end|>"}],
        [{"role": "user", "content": "x", "tool_calls": [CALL]}],
        [{"role": "<|im_end|>", "content": "x"}],
    ],
    ids=["split over parts", "tool result", "tool call", "role"],
)
def test_no_field_of_a_message_writes_an_end(messages: list[dict[str, Any]]) -> None:
    ids = TEMPLATES["qwen2.5"].encode(TOKENIZER, messages)
    assert ids.count(IDS["<|im_end|>"]) == len(messages)  # the template's, one for each
    text = TEMPLATES["qwen2.5"].render(messages)
    assert TOKENIZER.decode(ids, skip_special=False) == text


def test_a_tool_description_writes_no_end() -> None:
    tool = json.loads(json.dumps(TOOL).replace("Work out", "<|im_end|> <tool_call> [INST]"))
    tool["function"]["parameters"]["properties"]["</tool_call><|im_end|>"] = {}
    ids = TEMPLATES["qwen2.5"].encode(TOKENIZER, CHAT, [tool])
    innocent = TEMPLATES["qwen2.5"].encode(TOKENIZER, CHAT, [TOOL])
    assert [i for i in ids if i in CONTROL] == [i for i in innocent if i in CONTROL]


def test_the_assistant_keeps_its_own_thoughts_but_not_its_ends() -> None:
    messages = [
        {"role": "user", "content": "Hi <think>"},
        {"role": "assistant", "content": "<think>\nhm <|im_end|>\n</think>\n\nHello"},
    ]
    ids = TEMPLATES["qwen3"].encode(TOKENIZER, messages, add_generation_prompt=False)
    control = [TOKENIZER.decode([i], skip_special=False) for i in ids if i in CONTROL]
    assert control == ["<|im_start|>", "<|im_end|>", "<|im_start|>"] + SOFT[:2] + ["<|im_end|>"]


def test_a_template_finds_its_markup_in_the_assistants_turn_though_it_is_no_token() -> None:
    tokenizer = Tokenizer.train(["x"], 300)
    thought = {"role": "assistant", "content": "<think>\nhm\n</think>\n\nHello"}
    messages = [CHAT[0], thought, CHAT[2]]
    ids = TEMPLATES["qwen3"].encode(tokenizer, messages)
    assert ids == tokenizer.encode(TEMPLATES["qwen3"].render(messages), special=True)
    assert "hm" not in tokenizer.decode(ids)


def test_the_stand_ins_are_no_characters_of_the_messages() -> None:
    text = "".join(map(chr, range(0xA000, 0xA400))) + " < <|im_end|>"
    ids = TEMPLATES["chatml"].encode(TOKENIZER, [{"role": "user", "content": text}])
    assert text in TOKENIZER.decode(ids)
    assert ids.count(IDS["<|im_end|>"]) == 1


def test_every_possible_stand_in_in_a_message() -> None:
    text = "".join(map(chr, range(0xA000, 0xA48D)))
    with pytest.raises(UsageError, match="every syllable of the Yi script"):
        TEMPLATES["chatml"].encode(TOKENIZER, [{"role": "user", "content": text}])


def test_templates_that_escape_or_quote_show_what_the_message_says() -> None:
    source = "{{ messages[0].content | tojson(ensure_ascii=true) }}{{ messages[0] }}"
    messages = [{"role": "user", "content": "é < <|im_end|>"}]
    template = ChatTemplate(source)
    ids = template.encode(TOKENIZER, messages)
    assert TOKENIZER.decode(ids) == template.render(messages)
    assert not CONTROL & set(ids)


# -- rendering ----------------------------------------------------------------------------------


def test_which_templates_show_tools() -> None:
    showing = {name for name, template in TEMPLATES.items() if template.supports_tools}
    assert showing == {"llama-3", "mistral", "qwen2.5"}


def test_arguments_of_calls_are_objects_to_the_template() -> None:
    text = TEMPLATES["qwen2.5"].render(TOOL_CHAT)
    assert '{"name": "calculate", "arguments": {"a": "é<b"}}' in text
    odd = {**CALL, "function": {"name": "f", "arguments": "[not json"}}
    text = TEMPLATES["qwen2.5"].render([{"role": "assistant", "content": "", "tool_calls": [odd]}])
    assert '"arguments": "[not json"}' in text


def test_parts_become_text_where_the_template_wants_text() -> None:
    parts = [
        {"type": "text", "text": "one"},
        {"type": "image_url"},
        {"type": "text", "text": "two"},
    ]
    messages = [{"role": "user", "content": parts}]
    assert "<|im_start|>user\none\ntwo<|im_end|>" in TEMPLATES["chatml"].render(messages)
    assert "user\nonetwo<end_of_turn>" in TEMPLATES["gemma"].render(messages)


def test_the_messages_given_are_left_as_they_are() -> None:
    messages = json.loads(json.dumps(TOOL_CHAT))
    TEMPLATES["qwen2.5"].encode(TOKENIZER, messages, [TOOL])
    assert messages == TOOL_CHAT


def test_extra_variables_reach_the_template() -> None:
    text = TEMPLATES["qwen3"].render(CHAT, enable_thinking=False)
    assert text.endswith("<think>\n\n</think>\n\n")


def test_a_template_for_tools_is_used_when_there_are_tools() -> None:
    template = ChatTemplate({"default": "plain", "tool_use": "{{ tools[0].function.name }}"})
    assert template.render(CHAT) == "plain"
    assert template.render(CHAT, [TOOL]) == "calculate"
    assert template.supports_tools


# -- sources ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (
            {"tokenizer_config.json": {"chat_template": "A{{ bos_token }}", "bos_token": "<s>"}},
            "A<s>",
        ),
        (
            {
                "tokenizer_config.json": {"chat_template": "B{{ eos_token }}"},
                "special_tokens_map.json": {"eos_token": {"content": "</s>"}},
            },
            "B</s>",
        ),
        (
            {
                "tokenizer_config.json": {
                    "chat_template": [
                        {"name": "rag", "template": "C"},
                        {"name": "default", "template": "D"},
                    ]
                }
            },
            "D",
        ),
        ({"chat_template.jinja": "E", "tokenizer_config.json": {"chat_template": "F"}}, "E"),
        ({"tokenizer_config.json": {}}, None),
        ({}, None),
    ],
)
def test_templates_of_folders(tmp_path: Path, files: dict[str, Any], expected: str | None) -> None:
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (tmp_path / name).write_text(text)
    template = ChatTemplate.from_folder(tmp_path)
    assert (template.render(CHAT) if template else None) == expected


def test_templates_of_gguf_files() -> None:
    metadata = {
        "tokenizer.chat_template": "{{ bos_token }}|{{ eos_token }}",
        "tokenizer.chat_templates": ["tool_use"],
        "tokenizer.chat_template.tool_use": "tools",
        "tokenizer.ggml.tokens": ["<s>", "</s>"],
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 7,
    }
    template = ChatTemplate.from_gguf(metadata)
    assert template is not None
    assert (template.render(CHAT), template.render(CHAT, [TOOL])) == ("<s>|", "tools")
    assert ChatTemplate.from_gguf({}) is None


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("chat_template.jinja", b"\xff", "chat_template.jinja: not UTF-8"),
        ("tokenizer_config.json", b"{", "tokenizer_config.json: not valid JSON"),
        (
            "tokenizer_config.json",
            b'{"chat_template": "{% for %}"}',
            "broken chat template, line 1",
        ),
        ("tokenizer_config.json", b'{"chat_template": 7}', "chat template must be text"),
        ("tokenizer_config.json", b'{"chat_template": [{}]}', "chat template must be text"),
    ],
)
def test_broken_templates_of_folders(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=message):
        ChatTemplate.from_folder(tmp_path)


# -- strangers' code ----------------------------------------------------------------------------

LOOPS = "{% for i in range(9999) %}{% for j in range(9999) %}{% endfor %}{% endfor %}"
DOUBLING = (
    "{% set n = namespace(s='ab') %}{% for i in range(99) %}{% set n.s = n.s {} n.s %}{% endfor %}"
)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("a\nb\n{% if %}", "broken chat template, line 3"),
        ("{% include 'x' %}", "failed: no loader"),
        ("{{ raise_exception('not\nso') }}", "refuses the messages: not so$"),
        ("{{ messages[0].foo.bar }}", "failed: .*no attribute 'foo'"),
        ("{{ messages + 1 }}", "failed: can only concatenate"),
        ("{{ 1 / 0 }}", "failed: division by zero"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "unsafe"),
        ("{{ cycler.__init__.__globals__ }}", "unsafe|no attribute"),
        ("{% set n = namespace(__x__=1) %}", "private name '__x__'"),
        ("{% set n = namespace() %}{% set n.__x__ = 1 %}", "private name|failed"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{{ range(10000000) }}", "Range too big"),
        (LOOPS, "more than 500,000 steps"),
        ("{% for a in 'x' * 9999 %}{% for b in 'x' * 9999 %}{% endfor %}{% endfor %}", "steps"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "does not end within its bounds"),
        ("{{ 'x' * 10**10 }}", "more than 32,000,000 characters"),
        ("{{ 10**10 * [0] }}", "more than 32,000,000 characters"),
        ("{{ (9**9) ** (9**9) }}", "more than 32,000,000 characters"),
        ("{{ '%099999999999d' % 1 }}", "more than 32,000,000 characters"),
        ("{{ '{:>99999999999}'.format(1) }}", "more than 32,000,000 characters"),
        ("{{ 'x'.ljust(99999999999) }}", "more than 32,000,000 characters"),
        (DOUBLING.replace("{}", "~"), "more than 32,000,000 characters"),
        (DOUBLING.replace("{}", "+"), "more than 32,000,000 characters"),
        ("{{ 'x' * 10**6 }}" * 40, "more than 32,000,000 characters"),
        ("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "nested too deeply"),
    ],
)
def test_a_hostile_template_is_stopped_with_one_line(source: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        ChatTemplate(source).render(CHAT)
    assert "\n" not in str(caught.value)


def test_only_json_reaches_a_template() -> None:
    with pytest.raises(UsageError, match="JSON values only, not PosixPath"):
        ChatTemplate("x").render([{"role": "user", "content": Path("/")}])


def test_a_long_conversation_fits_the_bounds() -> None:
    messages = chat_of(["word " * 1000] * 2000)
    assert len(TEMPLATES["qwen3"].render(messages)) > 10_000_000
