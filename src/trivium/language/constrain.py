"""Output that is well-formed by construction: tokens that would break the form are never drawn.

A grammar is compiled from a JSON schema, a regular expression, a list of choices or a Lark grammar
(`compile_…`). A `Constrainer` knows the tokens of one tokenizer, and starts a `Constraint` for each
answer:

    constraint = Constrainer(tokenizer).start(compile_json_schema(schema))
    while not constraint.finished:
        token = next_token(constraint.mask(logits), …)
        constraint.accept(token)

The work is done by llguidance (derivatives of regular expressions and an Earley parser).
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jsonschema import Draft202012Validator
from jsonschema.exceptions import best_match
from jsonschema.validators import validator_for
from torch import Tensor

from trivium.errors import TriviumError, UsageError
from trivium.language.tokenizer import Tokenizer

try:
    from llguidance import LLMatcher, LLTokenizer
except ModuleNotFoundError as error:
    raise TriviumError('constrained output needs more: pip install "trivium[local]"') from error

Grammar = str
"""A checked grammar, as llguidance has it."""


def compile_json_schema(schema: Mapping[str, Any], *, compact: bool = False) -> Grammar:
    """A grammar of the JSON texts that `schema` allows, on one line, as json.dumps writes them.

    compact leaves out the spaces after commas and colons. Raises UsageError for a schema that is
    wrong or uses a keyword that cannot be enforced; none is ignored silently.
    """
    try:
        text = json.dumps(schema, ensure_ascii=False)
        if not isinstance(schema, Mapping):
            raise UsageError(f"a JSON schema must be an object, not {text[:60]}")
        validator = validator_for(schema, default=Draft202012Validator)
        fault = best_match(validator(validator.META_SCHEMA).iter_errors(schema))
    except (TypeError, ValueError) as error:
        raise UsageError(f"the JSON schema is not JSON: {error}") from error
    except RecursionError as error:
        raise UsageError("invalid JSON schema: it is nested too deeply") from error
    if fault is not None:
        message = " ".join(fault.message.split())
        raise UsageError(f"invalid JSON schema: at {fault.json_path}: {message[:150]}")
    options: Any = {
        "whitespace_flexible": False,
        "item_separator": "," if compact else ", ",
        "key_separator": ":" if compact else ": ",
    }
    grammar = LLMatcher.grammar_from_json_schema(_unicode(text), overrides=options)
    return _checked(grammar, "JSON schema")


def compile_regex(pattern: str) -> Grammar:
    """A grammar of the texts that `pattern` matches as a whole.

    The syntax is that of Rust's regex crate: no look-around, no back-references.
    """
    return _checked(
        LLMatcher.grammar_from_regex(_unicode(pattern)), f"regular expression {_short(pattern)}"
    )


def compile_choice(choices: Sequence[str]) -> Grammar:
    """A grammar of exactly these texts."""
    if not choices:
        raise UsageError("a choice needs at least one text to choose from")
    if isinstance(choices, str) or not all(isinstance(c, str) and c for c in choices):
        raise UsageError(f"choices must be a list of texts that are not empty, not {choices!r:.80}")
    alternatives = "\n    | ".join(map(_quoted, dict.fromkeys(choices)))
    # As one terminal: the lexer then walks all choices at once, however many they are.
    lark = f"start: CHOICE\nCHOICE: {alternatives}"
    return _checked(LLMatcher.grammar_from_lark(_unicode(lark)), "list of choices")


def compile_lark(grammar: str) -> Grammar:
    """A grammar in llguidance's dialect of Lark; its first rule is `start`."""
    return _checked(LLMatcher.grammar_from_lark(_unicode(grammar)), "Lark grammar")


def _quoted(text: str) -> str:
    """A literal of Lark: JSON's, with \x7f escaped too."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _unicode(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        part = ascii(text[max(error.start - 10, 0) : error.end])
        raise UsageError(f"half a surrogate pair, which is no Unicode text, in {part}") from error
    return text


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:57]}…")


def _checked(grammar: Grammar, what: str) -> Grammar:
    fault = LLMatcher.validate_grammar(grammar)
    if fault:
        raise UsageError(f"invalid {what}: {_one_line(fault)}")
    return grammar


def _one_line(message: str) -> str:
    """llguidance points at the place with lines of art; say it in words."""
    lines = message.splitlines()
    reason = next((line[7:] for line in lines if line.startswith("error: ")), None)
    if reason is None:
        place = re.match(r"at (\d+)\((\d+)\): (.*)", lines[0])
        return f"line {place[1]}, column {place[2]}: {place[3]}" if place else lines[0]
    for pattern, art in zip(lines, lines[1:], strict=False):
        if art.strip() and not art.strip("^ "):
            return f"{reason}, at {pattern[art.index('^') :].strip()[:40]!r}"
    return reason


class Constrainer:
    """Starts constraints for one tokenizer. Made once a tokenizer (a quarter of a second)."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        if not tokenizer.stop_ids:
            raise UsageError("constrained output needs a tokenizer with an end token; it has none")
        ends = sorted(tokenizer.stop_ids)
        self._tokenizer = LLTokenizer(tokenizer.to_json(), eos_token=ends)

    def start(self, grammar: Grammar) -> "Constraint":
        """A constraint at the beginning of its text."""
        matcher = LLMatcher(self._tokenizer, grammar, log_level=0)
        if matcher.is_error():
            raise UsageError(f"the grammar cannot be used: {_one_line(matcher.get_error())}")
        return Constraint(matcher)


class Constraint:
    """What may follow in one text. Tokens go in by `accept`."""

    def __init__(self, matcher: LLMatcher) -> None:
        self._matcher = matcher

    @property
    def complete(self) -> bool:
        """The text so far is a whole one; it may end here, or go on if the grammar allows."""
        return self._matcher.is_accepting()

    @property
    def finished(self) -> bool:
        """The text is whole and nothing can follow, or the end token was accepted."""
        return self._matcher.is_stopped() and self.complete

    def mask(self, logits: Tensor) -> Tensor:
        """Set the logits (V,) of all tokens that may not follow to minus infinity, in place.

        V may exceed the vocabulary, as padded models have it. An end token may follow exactly
        where the text is complete.
        """
        allowed = torch.frombuffer(bytearray(self._matcher.compute_logit_bias()), dtype=torch.uint8)
        self._sound()
        known = min(len(allowed), len(logits))
        logits[:known].masked_fill_((allowed[:known] == 0).to(logits.device), -torch.inf)
        logits[known:] = -torch.inf
        return logits

    def accept(self, token: int) -> None:
        """Append a token that `mask` allowed. Raises ValueError for any other."""
        if token < 0 or not self._matcher.validate_tokens([token]):
            raise ValueError(f"token {token} is not allowed here")
        self._matcher.consume_token(token)
        self._sound()

    def forced(self) -> list[int]:
        """The tokens that must come next, if there is no choice; they are not accepted yet.

        Of each of them in turn `mask` leaves nothing else.
        """
        return self._matcher.compute_ff_tokens()

    def allowed(self, tokens: Sequence[int]) -> int:
        """How many of `tokens` may follow one after the other. None of them is accepted."""
        return self._matcher.validate_tokens(list(tokens))

    def fork(self) -> "Constraint":
        """A copy that goes its own way from here."""
        return Constraint(self._matcher.deep_copy())

    def reset(self) -> None:
        """Back to the beginning of the text."""
        self._matcher.reset()

    def _sound(self) -> None:
        if self._matcher.is_error():
            reason = _one_line(self._matcher.get_error())
            raise TriviumError(f"the grammar became too complex to follow: {reason}")
