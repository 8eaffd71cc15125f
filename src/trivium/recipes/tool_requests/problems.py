"""Word problems of a file, with other numbers each time.

The file is JSONL in the form of GSM8K (Cobbe et al. 2021): `question`, and an `answer` whose steps
are marked, "2 pens cost 2*3 = <<2*3=6>>6", and that ends in "#### 6". The marked steps, put into
each other, are the one expression that solves the problem. Numbers of the expression that stand in
the question once are drawn anew; the problem stays sensible if whatever was a whole number or
positive on the way still is.
"""

import ast
import operator
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from trivium.errors import NotFound, UsageError
from trivium.files import read_json_lines
from trivium.llmos.calculator import calculate
from trivium.recipes.tool_requests.patterns import careless, polite
from trivium.recipes.tool_requests.tasks import NUMBERS, Exchange, Step, number_word, spoken_number

OPERATIONS = 4  # at most, of a problem that is used
KNOWN = {  # numbers that a question need not spell out: halves, dozens, minutes of an hour
    *map(Fraction, (1, 2, 3, 4, 7, 10, 12, 24, 52, 60, 100, 365, 1000)),
    *map(Fraction, ("0.01", "0.1", "0.25", "0.5", "0.75", "1.5")),
}
TRIES = 30  # to draw numbers that make sense
ANSWERS = ("That is {}.", "It is {}.", "The answer is {}.", "That makes {}.", "{}.")
_MARK = re.compile(r"<<([^<>=]+)=([^<>=]+)>>")
_NUMBER = re.compile(r"(?<![\w.,])\d[\d,]*(?:\.\d+)?(?![\w]|[.,]\d|/\d)")
_WORD = re.compile(r"\b(" + "|".join(NUMBERS[2:13]) + r")\b", re.IGNORECASE)
PERCENT = re.compile(r"\s*(%|percent|per cent)")
_CLOCK = re.compile(r"\d:\d\d")
_OPERATORS: Mapping[type[ast.operator], Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


@dataclass(frozen=True)
class Problem:
    """A question in pieces, and the expression; `slots` are the pieces that are numbers of it."""

    pieces: tuple[str, ...]
    slots: Mapping[int, Fraction]  # place among the pieces: its number
    tree: ast.expr


def read_problems(path: str | Path) -> list[Problem]:
    """Those of a file that one expression of a few operations solves.

    Raises NotFound, or UsageError for a file that has none.
    """
    file, found = Path(path).expanduser(), []
    if not file.is_file():
        raise NotFound(f"no file {path}: `problems` is JSONL in the form of GSM8K")
    for record in read_json_lines(file):
        if isinstance(record, dict) and {"question", "answer"} <= record.keys():
            problem = _parsed(str(record["question"]), str(record["answer"]))
            found += [problem] if problem else []
    if not found:
        raise UsageError(
            f"{path} has no word problems: it takes lines of JSON with `question` and an `answer` "
            "whose steps are marked like <<2*3=6>> and that ends in #### 6"
        )
    return found


def problem(rng: random.Random, problems: Sequence[Problem]) -> Exchange:
    """A problem with its call and its answer."""
    chosen = rng.choice(problems)
    for _ in range(TRIES):
        values = {place: drawn(value, rng) for place, value in chosen.slots.items()}
        changed = _sensible(chosen, dict(zip(chosen.slots.values(), values.values(), strict=True)))
        if changed is not None:
            break
    else:
        values, changed = dict(chosen.slots), _written(chosen.tree)
    pieces = list(chosen.pieces)
    for place, value in values.items():
        pieces[place] = alike(pieces[place], value)
    expression = ast.unparse(changed)
    result = str(calculate.function(expression))
    request = polite(careless("".join(pieces), rng), rng)
    answer = rng.choice(ANSWERS).format(spoken_number(result))
    answer = answer[:1].upper() + answer[1:]
    return Exchange(request, (Step("calculate", {"expression": expression}, result),), answer)


# -- reading --------------------------------------------------------------------------------------


def _parsed(question: str, answer: str) -> Problem | None:
    """None if it is not solved by one expression of a few operations."""
    question = " ".join(question.split())
    known: dict[Fraction, ast.expr] = {}
    unclear: set[Fraction] = set()
    asked = {_value(found) for found in _NUMBER.findall(question)}
    tree: ast.expr | None = None
    for left, right in _MARK.findall(answer):
        step, value = _tree(left), _number(right)
        if step is None or value is None or _computed(step) != value:
            return None
        if unclear & _numbers(step).keys():
            return None
        tree = _Put(known).visit(step)
        if value in asked:
            unclear.add(value)  # when it comes again: the result, or what the question tells?
        known[value] = tree
    final = _number(answer.rpartition("####")[2].strip())
    if (
        tree is None
        or final is None
        or _CLOCK.search(question)
        or _computed(tree) != final
        or final <= 0
    ):
        return None
    operations = sum(isinstance(node, ast.BinOp) for node in ast.walk(tree))
    if not 1 <= operations <= OPERATIONS:
        return None
    return _with_slots(question, tree)


def _with_slots(question: str, tree: ast.expr) -> Problem | None:
    """None if the expression has a number that the question does not tell."""
    literals = _numbers(tree)
    pieces, where = in_pieces(question)
    shown = list(where.values())
    percent = {place for place in where if PERCENT.match(pieces[place + 1])}
    shares = {
        share
        for n in (where[place] for place in percent)
        for share in (n / 100, 1 - n / 100, 1 + n / 100, 100 - n, 100 + n)
    }
    if not literals.keys() <= {*shown, *shares, *KNOWN}:
        return None
    slots = {
        place: value
        for place, value in where.items()
        if shown.count(value) == 1 and literals[value] == 1 and place not in percent
    }
    return Problem(pieces, slots, tree)


def in_pieces(question: str) -> tuple[tuple[str, ...], dict[int, Fraction]]:
    """The question in pieces, every second of which is a number, and the value of each number."""
    pieces, where, last = [], {}, 0
    numbers = [*_NUMBER.finditer(question), *_WORD.finditer(question)]
    for found in sorted(numbers, key=lambda found: found.start()):
        pieces += [question[last : found.start()], found[0]]
        where[len(pieces) - 1] = _value(found[0])
        last = found.end()
    return (*pieces, question[last:]), where


def _numbers(tree: ast.expr) -> Counter[Fraction]:
    return Counter(node.value for node in ast.walk(tree) if isinstance(node, ast.Constant))  # type: ignore[misc]


def _value(text: str) -> Fraction:
    word = text.lower()
    if word in NUMBERS:
        return Fraction(NUMBERS.index(word))
    return Fraction(text.replace(",", "").rstrip("."))


def _number(text: str) -> Fraction | None:
    try:
        return Fraction(text.strip().lstrip("$").replace(",", ""))
    except (ValueError, ZeroDivisionError):
        return None


def _tree(text: str) -> ast.expr | None:
    """The expression, with exact numbers; None if it holds anything but numbers and + - * /."""
    text = re.sub(r"(?<=\d),(?=\d{3})", "", text.replace("$", "").replace("x", "*"))
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant):
            source = ast.get_source_segment(text.strip(), node) or ""
            value = _number(source)
            if value is None:
                return None
            node.value = value  # type: ignore[assignment]
        elif not isinstance(node, ast.BinOp) and type(node) not in _OPERATORS:
            return None
    return tree


class _Put(ast.NodeTransformer):
    """In the place of a result, how it came about."""

    def __init__(self, known: Mapping[Fraction, ast.expr]) -> None:
        self._known = known

    def visit_Constant(self, node: ast.Constant) -> ast.expr:
        return self._known.get(node.value, node)  # type: ignore[call-overload,no-any-return]


# -- other numbers --------------------------------------------------------------------------------


def drawn(value: Fraction, rng: random.Random) -> Fraction:
    """A number of that size and kind."""
    scale = 10 ** len(str(value.denominator - 1)) if value.denominator > 1 else 1
    whole = int(value * scale)
    if rng.random() < 0.15:
        return value
    low, high = max(2, whole // 2), max(5, whole * 2)
    drawn = rng.randint(low, high)
    step = next((step for step in (100, 50, 10, 5) if whole % step == 0 and whole > step), 1)
    drawn = max(step, drawn // step * step) if rng.random() < 0.8 else drawn
    return Fraction(drawn, scale)


def _sensible(problem: Problem, new: Mapping[Fraction, Fraction]) -> ast.expr | None:
    """The expression of the new numbers, if all that was whole or positive on the way still is."""
    changed = _replaced(problem.tree, new)
    for before, after in zip(_results(problem.tree), _results(changed), strict=True):
        if after is None or before is None:
            return None
        if after <= 0 < before or after.denominator > 1 == before.denominator:
            return None
        if before <= 100 * after and after > 100 * before + 1000:
            return None
    return _written(changed)


def _replaced(tree: ast.expr, new: Mapping[Fraction, Fraction]) -> ast.expr:
    if isinstance(tree, ast.Constant):
        value: Fraction = tree.value  # type: ignore[assignment]
        return ast.Constant(new.get(value, value))  # type: ignore[arg-type]
    assert isinstance(tree, ast.BinOp)
    return ast.BinOp(_replaced(tree.left, new), tree.op, _replaced(tree.right, new))


def _results(tree: ast.expr) -> Iterator[Fraction | None]:
    """Of all operations, those inside first."""
    if isinstance(tree, ast.BinOp):
        yield from _results(tree.left)
        yield from _results(tree.right)
        yield _computed(tree)


def _computed(tree: ast.expr) -> Fraction | None:
    if isinstance(tree, ast.Constant):
        return tree.value  # type: ignore[return-value]
    assert isinstance(tree, ast.BinOp)
    left, right = _computed(tree.left), _computed(tree.right)
    if left is None or right is None or isinstance(tree.op, ast.Div) and right == 0:
        return None
    return _OPERATORS[type(tree.op)](left, right)


def _written(tree: ast.expr) -> ast.expr:
    """The expression with numbers as they are typed."""
    if isinstance(tree, ast.Constant):
        return ast.Name(digits(tree.value))  # type: ignore[arg-type]
    assert isinstance(tree, ast.BinOp)
    return ast.BinOp(_written(tree.left), tree.op, _written(tree.right))


def digits(value: Fraction) -> str:
    if value.denominator == 1:
        return str(value.numerator)
    return f"{float(value):.10f}".rstrip("0")


def alike(before: str, value: Fraction) -> str:
    """The number as the old one was written: as a word, with commas, with two places."""
    if before.lower() in NUMBERS:
        if value.denominator == 1 and 0 <= value < len(NUMBERS):
            word = number_word(int(value))
            return word.capitalize() if before[0].isupper() else word
        return digits(value)
    if value.denominator == 1:
        return f"{int(value):,}" if "," in before else str(int(value))
    text = digits(value)
    places = len(before.partition(".")[2])
    return text + "0" * max(0, places - len(text.partition(".")[2]))
