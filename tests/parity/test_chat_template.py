"""The same text, and the same tokens, as transformers' apply_chat_template."""

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers

from trivium.errors import UsageError
from trivium.gguf_file import GGUFFile
from trivium.language.chat_template import ChatTemplate
from trivium.language.tokenizer import Tokenizer

transformers = pytest.importorskip("transformers")

FOLDER = Path(__file__).parents[1] / "language"
SOURCES: dict[str, str] = json.loads((FOLDER / "chat_templates.json").read_text("utf-8"))
CORPUS: dict[str, list[str]] = json.loads((FOLDER / "corpus.json").read_text("utf-8"))
TEXTS = [text for texts in CORPUS.values() for text in texts]
SOURCES["whitespace control"] = (
    "  {% for m in messages %}  \n\n  {{ m.content }}\n{% endfor %}\n\n  {#- no -#}  {{- 1 -}}  \n"
)
SOURCES["filters"] = (
    "{{ messages | tojson }}{{ messages | tojson(indent=2) }}{{ messages[0] | items | list }}"
    "{{ messages | map(attribute='role') | join(',') }}{{ messages[0].content | upper | length }}"
    "{{ messages | selectattr('role', 'equalto', 'user') | list | length }}{{ tools }}{{ missing }}"
    "{{ {'ü': '<'} | tojson(ensure_ascii=true, separators=(',', ':')) }}{{ strftime_now('%Y') }}"
    "{{ 'a' ~ 1 ~ none }}{{ '%s-%d' % ('x', 2) }}{{ 'x' * 3 + 'y' }}{{ 2 ** 10 }}{{ documents }}"
    "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}"
    "{{ ns.n }}{% macro twice(x) %}{{ x }}{{ x }}{% endmacro %}{{ twice('z') }}{{ x is defined }}"
)
TOOL = {
    "type": "function",
    "function": {
        "name": "lookup",
        "description": "Find “it” & <more>",
        "parameters": {
            "type": "object",
            "properties": {"ключ": {"type": "string", "description": "中文"}},
            "required": ["ключ"],
        },
    },
}


def call(arguments: Any) -> dict[str, Any]:
    return {"id": "a1", "type": "function", "function": {"name": "lookup", "arguments": arguments}}


def conversations() -> dict[str, list[dict[str, Any]]]:
    system = {"role": "system", "content": " Be <b>brief</b>. "}
    user = {"role": "user", "content": "Hi\n\nthere & 你好 "}
    thought = {"role": "assistant", "content": "<think>\nhm\n</think>\n\n A: 1 < 2\n"}
    asks = {
        "role": "assistant",
        "content": "",
        "tool_calls": [call({"ключ": "<é>", "n": [1, None]})],
    }
    result = {"role": "tool", "content": '{"x": "ü"}', "tool_call_id": "a1"}
    parts = {"role": "user", "content": [{"type": "text", "text": " part "}]}
    named = {"role": "assistant", "content": "sure", "reasoning_content": "so", "name": "bo"}
    return {
        "one": [user],
        "system": [system, user],
        "turns": [user, thought, user],
        "tools": [system, user, asks, result, result, thought, user],
        "parts": [parts],
        "after": [user, thought],
        "reasoning": [user, named, user, named],
        "wrong order": [thought, user, user],
        **{f"text {i}": [{"role": "user", "content": text}] for i, text in enumerate(TEXTS)},
    }


CONVERSATIONS = conversations()


@pytest.fixture(scope="module")
def reference() -> tuple[Tokenizer, Any]:
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<s>", "</s>", "<|eot_id|>"]
    special += ["<|start_header_id|>", "<|end_header_id|>", "[INST]", "[/INST]", "<end_of_turn>"]
    ours = Tokenizer.train(TEXTS, 500, special=special)
    library = tokenizers.Tokenizer.from_str(ours.to_json())
    theirs = transformers.PreTrainedTokenizerFast(
        tokenizer_object=library, bos_token="<s>", eos_token="</s>"
    )
    return ours, theirs


@pytest.mark.parametrize("tools", [None, [TOOL]], ids=["no tools", "tools"])
@pytest.mark.parametrize("prompt", [True, False], ids=["prompt", "no prompt"])
@pytest.mark.parametrize("name", SOURCES)
def test_the_text_is_that_of_transformers(
    name: str, prompt: bool, tools: Any, reference: tuple[Tokenizer, Any]
) -> None:
    tokenizer, theirs = reference
    source = SOURCES[name]
    template = ChatTemplate(source, bos_token="<s>", eos_token="</s>")
    options = {"chat_template": source, "tools": tools, "add_generation_prompt": prompt}
    agreed = 0
    for label, messages in CONVERSATIONS.items():
        if label == "parts" and name != "gemma":
            continue  # text for those that read none: a kindness of ours
        try:
            expected = theirs.apply_chat_template(messages, tokenize=False, **options)
        except Exception:
            with pytest.raises(UsageError):
                template.render(messages, tools, add_generation_prompt=prompt)
            continue
        assert template.render(messages, tools, add_generation_prompt=prompt) == expected
        agreed += 1
        if not any(mark in text for mark in tokenizer.control_tokens for text in [str(messages)]):
            ids = theirs.apply_chat_template(messages, return_dict=False, **options)
            assert template.encode(tokenizer, messages, tools, prompt) == ids
    assert agreed > len(TEXTS)


@pytest.mark.published
def test_smollm2_is_addressed_as_transformers_does(default_model: Path) -> None:
    path = default_model
    metadata = GGUFFile(path).metadata
    ours, tokenizer = ChatTemplate.from_gguf(metadata), Tokenizer.from_gguf(metadata)
    theirs = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    assert ours is not None and not ours.supports_tools
    for label, messages in CONVERSATIONS.items():
        if label != "parts":
            options = {"tokenize": False, "add_generation_prompt": True}
            assert ours.render(messages) == theirs.apply_chat_template(messages, **options)
            ids = ours.encode(tokenizer, messages)
            assert tokenizer.decode(ids[:3], skip_special=False) == "<|im_start|>system\n"
            # One start and one end a message, the system's that the template adds, the prompt's.
            added = messages[0]["role"] != "system"
            assert ids.count(1) == len(messages) + added + 1
            assert ids.count(2) == len(messages) + added
