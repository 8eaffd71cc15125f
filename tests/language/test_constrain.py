import json
import re
import time
from typing import Any

import jsonschema
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trivium.errors import TriviumError, UsageError
from trivium.language.constrain import (
    Constrainer,
    Constraint,
    compile_choice,
    compile_json_schema,
    compile_lark,
    compile_regex,
)
from trivium.language.tokenizer import Tokenizer

TEXTS = [
    '{"name": "value", "list": [1, 2, 3], "yes": true}' * 5,
    "the choice is yours 中文 🙂 é" * 9,
]
TOKENIZER = Tokenizer.train(TEXTS, 500)
CONSTRAINER = Constrainer(TOKENIZER)
PADDED = TOKENIZER.vocab_size + 37


def walk(constraint: Constraint, seed: int, limit: int = 3000) -> str:
    """Random text under a constraint, from logits as wide as a padded model's."""
    generator = torch.Generator().manual_seed(seed)
    ids: list[int] = []
    while not constraint.finished and len(ids) < limit:
        raw = torch.randn(PADDED, generator=generator)
        logits = constraint.mask(raw.clone())
        allowed = logits > -torch.inf
        assert not allowed[TOKENIZER.vocab_size :].any()
        assert torch.equal(logits[allowed], raw[allowed])
        ends = [bool(allowed[i]) for i in TOKENIZER.stop_ids]
        assert ends == [constraint.complete] * len(ends)
        forced = constraint.forced()
        if forced:
            assert allowed[forced[0]]
        token = int(logits.argmax())
        constraint.accept(token)
        ids.append(token)
    return TOKENIZER.decode(ids)


SCHEMAS: dict[str, dict[str, Any]] = {
    "object": {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 12},
            "age": {"type": "integer", "minimum": 0, "maximum": 130},
            "score": {"type": "number"},
            "tags": {"type": "array", "items": {"enum": ["x", 1, None]}, "maxItems": 3},
        },
        "required": ["name", "age"],
        "additionalProperties": False,
    },
    "enum": {"enum": ['a"b\\c\n', "中文", {"k": [1, 2.5]}, True, None]},
    "nested": {
        "$defs": {"leaf": {"type": "array", "items": {"type": "boolean"}, "maxItems": 2}},
        "type": "object",
        "properties": {
            "ключ 🙂": {"anyOf": [{"$ref": "#/$defs/leaf"}, {"const": "no"}]},
            "date": {"type": "string", "format": "date"},
        },
        "required": ["ключ 🙂", "date"],
        "additionalProperties": False,
    },
    "pattern": {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{3}$"},
    "string": {"type": "string", "maxLength": 20},
}


@pytest.mark.parametrize("compact", [False, True])
@pytest.mark.parametrize("name", SCHEMAS)
def test_random_walks_give_json_that_the_schema_allows(name: str, compact: bool) -> None:
    schema = SCHEMAS[name]
    constraint = CONSTRAINER.start(compile_json_schema(schema, compact=compact))
    separators = (",", ":") if compact else (", ", ": ")
    for seed in range(25):
        constraint.reset()
        text = walk(constraint, seed)
        assert constraint.finished
        value = json.loads(text)
        jsonschema.validate(value, schema, jsonschema.Draft202012Validator)
        if name in ("object", "nested") and "\\" not in text and "E" not in text.upper():
            # On one line, with the spaces of json.dumps.
            spaces = re.sub(r'"[^"]*"|[^\s,:]', "", text)
            written = json.dumps(value, separators=separators, ensure_ascii=False)
            assert spaces == re.sub(r'"[^"]*"|[^\s,:]', "", written)


CHOICES = [
    "yes",
    "no",
    "yes, but",
    "a.*b|c",
    "(",
    'say "hi"',
    "back\\slash",
    "中文",
    "🙂",
    "a\nb",
    "/",
]


def test_random_walks_give_one_of_the_choices() -> None:
    constraint = CONSTRAINER.start(compile_choice(CHOICES))
    seen = set()
    for seed in range(150):
        constraint.reset()
        seen.add(walk(constraint, seed))
        assert constraint.finished
    assert seen <= set(CHOICES)
    assert len(seen) > 5


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), min_size=1))
@settings(max_examples=60, deadline=None)
def test_any_text_can_be_a_choice(choices: list[str]) -> None:
    constraint = CONSTRAINER.start(compile_choice(choices))
    assert walk(constraint.fork(), len(choices)) in choices
    for token in TOKENIZER.encode(choices[-1]):
        constraint.accept(token)
    assert constraint.complete


PATTERNS = [
    r"[0-9]{3}-[a-f]+",
    r"(ab|c)*d?",
    r"https?://[a-z]+(/[a-z]*)*",
    r"[一-龥]{2,4}",
    r"a/b\\n\.",
]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_random_walks_match_the_pattern(pattern: str) -> None:
    constraint = CONSTRAINER.start(compile_regex(pattern))
    for seed in range(25):
        constraint.reset()
        text = walk(constraint, seed)
        assert constraint.finished
        assert re.fullmatch(pattern, text)


def test_a_lark_grammar() -> None:
    grammar = compile_lark('start: "(" start ")" | NUMBER\nNUMBER: /[0-9]/')
    for seed in range(20):
        text = walk(CONSTRAINER.start(grammar), seed)
        assert re.fullmatch(r"\(*[0-9]\)*", text) and text.count("(") == text.count(")")


# -- states -------------------------------------------------------------------------------------


def test_a_text_cut_short_is_not_finished() -> None:
    constraint = CONSTRAINER.start(compile_json_schema(SCHEMAS["object"]))
    walk(constraint, 0, limit=3)
    assert not constraint.finished and not constraint.complete


def test_complete_texts_may_go_on_until_the_end_token() -> None:
    constraint = CONSTRAINER.start(compile_regex("a+"))
    assert not constraint.complete
    (a,) = TOKENIZER.encode("a")
    constraint.accept(a)
    assert constraint.complete and not constraint.finished
    constraint.accept(a)
    constraint.accept(next(iter(TOKENIZER.stop_ids)))
    assert constraint.finished


def test_nothing_may_follow_a_finished_text() -> None:
    constraint = CONSTRAINER.start(compile_choice(["a"]))
    (a,) = TOKENIZER.encode("a")
    constraint.accept(a)
    assert constraint.finished
    with pytest.raises(ValueError, match="not allowed"):
        constraint.accept(a)
    assert constraint.finished  # a wrong token leaves it as it was


def test_forced_tokens_spell_what_has_no_alternative() -> None:
    constraint = CONSTRAINER.start(compile_json_schema(SCHEMAS["object"]))
    forced = constraint.forced()
    assert forced and TOKENIZER.decode(forced).startswith('{"name": "'[: len(forced)])
    for token in forced:
        constraint.accept(token)
    assert '{"name": "'.startswith(TOKENIZER.decode(forced))


def test_a_fork_goes_its_own_way() -> None:
    constraint = CONSTRAINER.start(compile_choice(["ab", "ac"]))
    (a,), (b,), (c,) = (TOKENIZER.encode(letter) for letter in "abc")
    constraint.accept(a)
    fork = constraint.fork()
    constraint.accept(b)
    fork.accept(c)
    assert constraint.finished and fork.finished
    constraint.reset()
    assert not constraint.complete


@pytest.mark.parametrize("token", [-1, 10**9])
def test_a_token_out_of_range_is_not_allowed(token: int) -> None:
    with pytest.raises(ValueError, match="not allowed"):
        CONSTRAINER.start(compile_regex("a")).accept(token)


# -- faults -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"type": "strin"}, r"invalid JSON schema: at \$.type: 'strin' is not valid"),
        ({"properties": {"a": {"type": 7}}}, r"at \$.properties.a.type"),
        ({"type": "string", "maxLength": -1}, r"at \$.maxLength: -1 is less than"),
        ({"type": "object", "properties": {"b": {"pattern": "(["}}}, "JSON schema: .*character"),
        ({"$ref": "#/nope"}, "Pointer '/nope' does not exist"),
        ({"if": {"type": "string"}}, 'Unimplemented keys: \\["if"\\]'),
        ({"type": "integer", "minimum": 3, "maximum": 2}, "JSON schema: "),
        (False, "must be an object, not false"),
        ({"title": "\ud800"}, "half a surrogate pair"),
        ([1], r"must be an object, not \[1\]"),
        ("text", 'must be an object, not "text"'),
        ({"const": {1, 2}}, "is not JSON"),
    ],
)
def test_a_wrong_schema_is_one_line_that_names_the_place(schema: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        CONSTRAINER.start(compile_json_schema(schema))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


def test_a_schema_without_a_bottom() -> None:
    deep: dict[str, Any] = {}
    for _ in range(5000):
        deep = {"items": deep}
    with pytest.raises(UsageError, match="nested too deeply"):
        compile_json_schema(deep)
    endless = CONSTRAINER.start(compile_json_schema({"$ref": "#"}))
    with pytest.raises(TriviumError, match="too complex"):
        walk(endless, 0)
    assert not endless.complete and not endless.finished


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("a(b", r"regular expression 'a\(b': unclosed group, at '\(b'"),
        ("[z-a]", "invalid character class range"),
        ("(?=x)y", "look-around"),
        ("x{5,1}", "invalid repetition"),
        (r"(a)\1", "backreferences"),
        ("y" * 500 + "(", "unclosed group"),
    ],
)
def test_a_wrong_pattern_is_one_line_that_names_the_place(pattern: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        compile_regex(pattern)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ([], "at least one"),
        ("abc", "must be a list of texts"),
        (["a", ""], "must be a list of texts"),
        ([1], "must be a list of texts"),
        (["\ud800"], "surrogate"),
    ],
)
def test_wrong_choices(choices: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        compile_choice(choices)


@pytest.mark.parametrize("grammar", ["start: foo", "strt", "", "start: /(/"])
def test_a_wrong_lark_grammar(grammar: str) -> None:
    with pytest.raises(UsageError, match="invalid Lark grammar: ") as caught:
        compile_lark(grammar)
    assert "\n" not in str(caught.value)


def test_ten_thousand_choices_are_quick() -> None:
    began = time.perf_counter()
    grammar = compile_choice([f"choice number {i}" for i in range(10_000)])
    assert walk(CONSTRAINER.start(grammar), 0).startswith("choice number ")
    assert time.perf_counter() - began < 20  # a tenth of a second when nothing else runs


def test_a_tokenizer_without_an_end_cannot_be_constrained() -> None:
    endless = Tokenizer.train([], 257, special=["<pad>"])
    endless.stop_ids = frozenset()
    with pytest.raises(UsageError, match="with an end token"):
        Constrainer(endless)
