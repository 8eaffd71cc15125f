"""The calculator: reads an expression as people and programmers write it, and never runs code.

    program      (name '=' sum (';' | newline))* comparison        price = 3 * 4; 20 - price
    comparison   sum (('<' | '<=' | '=' | '==' | '!=' | '>=' | '>') sum)*
    sum          product (('+' | '-') product)*            200 + 10% is 220, as on calculators
    product      share (('*' | '/' | '//' | '%' | 'mod') share)*
    share        signed ('of' share)?                      15% of 80
    signed       ('+' | '-') signed | power
    power        postfix (('^' | '**') signed)?            -2^2 is -4, 2^3^2 is 2^9
    postfix      atom ('!' | '%' | '°' | thousand | million | k | M | 万 | 亿 …)*
    atom         number | constant | function '(' sum (',' sum)* ')' | '(' sum ')' | '√' postfix

A program's last line may be `name = sum` too; names may stand in the sums behind them. Instead of a
sum there may be a conversion, as in 26.2 miles to km: see `trivium.llmos.units`.

A `%` before an operand is the remainder, else it is per cent. A comma groups digits (1,234,567.89),
but separates arguments inside a function of several arguments. Values are those of
`trivium.llmos.arithmetic`: exact where the operation is. The parser computes as it reads.
"""

import decimal
import difflib
import re
from collections.abc import Callable, Mapping
from decimal import Decimal
from fractions import Fraction

from trivium.llmos import arithmetic, units
from trivium.llmos.arithmetic import Number
from trivium.llmos.confirmation import visible
from trivium.llmos.functions import FUNCTIONS, Function
from trivium.llmos.numerals import number, written
from trivium.llmos.tools import ToolError, tool

_LONGEST = 2000  # characters of an expression
_DEEPEST = 50

_SPELLINGS = str.maketrans(
    {
        **dict.fromkeys("×·⋅∗✕", "*"),
        **dict.fromkeys("÷∕", "/"),
        **dict.fromkeys("−–—", "-"),
        **dict.fromkeys("$€£¥", " "),
        **dict.fromkeys("\t\n\r\u00a0", " "),
        **dict(zip("（），％＋－＝", "(),%+-=", strict=True)),
        "；": ";",
        "≤": "<=",
        "≥": ">=",
        "≠": "!=",
        "π": " pi ",
        "²": "^2",
        "³": "^3",
    }
)
_TOKEN = re.compile(
    r" *(?:"
    r"(?P<whole>0[xX][0-9a-fA-F]+|0[bB][01]+|0[oO][0-7]+)(?![0-9a-zA-Z_.])"
    r"|(?P<number>(?:[0-9][0-9_]*(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+(?![0-9a-zA-Z_]))?)"
    r"|(?:math\.)?(?P<name>[A-Za-z_][A-Za-z_0-9]*)"
    r"|(?P<sign>\*\*|//|<=|>=|==|!=|[-+*/%^!()\[\],<>=°√百千万萬亿億])"
    r")"
)
_ASSIGNED = re.compile(r" *([A-Za-z_][A-Za-z_0-9]*) *=(?!=)")
_GROUPED = re.compile(r" *([0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]+)?)(?![0-9,]*[0-9])")

_UNITS = {
    **dict.fromkeys(("hundred", "hundreds", "百"), 10**2),
    **dict.fromkeys(("thousand", "thousands", "k", "K", "千"), 10**3),
    **dict.fromkeys(("万", "萬"), 10**4),
    **dict.fromkeys(("million", "millions", "mn", "M"), 10**6),
    **dict.fromkeys(("亿", "億"), 10**8),
    **dict.fromkeys(("billion", "billions", "bn", "B"), 10**9),
    **dict.fromkeys(("trillion", "trillions", "tn", "T"), 10**12),
}
_CONSTANTS: dict[str, Number] = {
    "pi": arithmetic.PI,
    "e": arithmetic.E,
    "tau": arithmetic.multiply(arithmetic.PI, Fraction(2)),
}
_COMPARE: dict[str, Callable[[Number], bool]] = {
    "=": lambda difference: difference == 0,
    "==": lambda difference: difference == 0,
    "!=": lambda difference: difference != 0,
    "<": lambda difference: difference < 0,
    "<=": lambda difference: difference <= 0,
    ">": lambda difference: difference > 0,
    ">=": lambda difference: difference >= 0,
}


class _Parser:
    """Reads one expression from left to right and computes as it goes."""

    def __init__(self, text: str, named: Mapping[str, Number]) -> None:
        self._text, self._named = text, named
        self._at = 0
        self._depth = 0
        self._grouping = True  # whether a comma between digits groups them
        self._percent = (-1, -1)  # where the last term that is nothing but a percentage stands
        self.notes: list[str] = []

    def result(self) -> Number | bool:
        value = self._sum()
        verdict = None
        while sign := self._take("==", "!=", "<=", ">=", "<", ">", "="):
            other = self._sum()
            difference = arithmetic.subtract(value, other)
            holds = _COMPARE[sign](difference)
            if isinstance(difference, Decimal) and not difference:
                self.notes.append(f"equal to {arithmetic.SURE} digits")
            verdict = holds if verdict is None else verdict and holds
            value = other
        if self._peek():
            raise self._confused()
        return value if verdict is None else verdict

    def _peek(self) -> str:
        """The next token as written; empty at the end."""
        rest = self._text[self._at :]
        if not rest.strip():
            return ""
        match = (self._grouping and _GROUPED.match(rest)) or _TOKEN.match(rest)
        if match is None:
            raise self._confused()
        return match[0].lstrip()

    def _take(self, *tokens: str) -> str:
        """Move past the next token if it is one of `tokens`; that token, or nothing."""
        token = self._peek()
        if token not in tokens or not token:
            return ""
        self._at = self._text.index(token, self._at) + len(token)
        return token

    def _confused(self) -> ToolError:
        rest = self._text[self._at :].strip()
        if not rest:
            return ToolError("the expression ends too early")
        found = f"{visible(rest[:20])!r} at character {len(self._text) - len(rest) + 1}"
        if rest.startswith(","):
            return ToolError(
                f"did not expect {found}: a comma groups three digits (1,234) or separates the "
                "arguments of a function; the decimal sign is a point"
            )
        return ToolError(f"did not expect {found}: write each * out, as in 2 * (3 + 4)")

    def _deeper(self, read: Callable[[], Number]) -> Number:
        self._depth += 1
        if self._depth > _DEEPEST:
            raise ToolError(f"the expression is nested more than {_DEEPEST} deep")
        value = read()
        self._depth -= 1
        return value

    def _sum(self) -> Number:
        start = self._at
        value = self._product()
        only_percent = self._percent == (start, self._at)
        while sign := self._take("+", "-"):
            start = self._at
            term = self._product()
            is_percent = self._percent == (start, self._at)
            if is_percent and not only_percent:
                share = arithmetic.multiply(term, value)
                percent = written(arithmetic.multiply(term, Fraction(100)))
                self.notes.append(f"{percent}% of {written(value)} is {written(share)}")
                term = share
            only_percent = only_percent and is_percent
            value = (arithmetic.add if sign == "+" else arithmetic.subtract)(value, term)
        return value

    def _product(self) -> Number:
        value = self._share()
        while sign := self._take("*", "/", "//", "%", "mod"):
            compute = {
                "*": arithmetic.multiply,
                "/": arithmetic.divide,
                "//": arithmetic.floor_divide,
            }.get(sign, arithmetic.modulo)
            value = compute(value, self._share())
        return value

    def _share(self) -> Number:
        value = self._signed()
        if self._take("of"):
            return arithmetic.multiply(value, self._deeper(self._share))
        return value

    def _signed(self) -> Number:
        if self._take("+"):
            return self._deeper(self._signed)
        if self._take("-"):
            return arithmetic.negative(self._deeper(self._signed))
        base = self._postfix()
        if self._take("^", "**"):
            return arithmetic.power(base, self._deeper(self._signed))
        return base

    def _postfix(self) -> Number:
        start = self._at
        value = self._atom()
        while token := self._take("!", "%", "percent", "°", *_UNITS):
            if token in _UNITS:
                value = arithmetic.multiply(value, Fraction(_UNITS[token]))
            elif token == "°":
                value = FUNCTIONS["radians"].compute(value)
            elif token == "!":
                value = arithmetic.factorial(value)
                if self._peek() in ("!", "!="):
                    raise ToolError("write (5!)! for a factorial of a factorial")
            elif token == "%" and self._operand_follows():
                self._at -= 1  # it is the remainder
                break
            else:
                value = arithmetic.divide(value, Fraction(100))
                self._percent = (start, self._at)
        return value

    def _operand_follows(self) -> bool:
        token = self._peek()
        if token in ("of", "mod", "percent"):
            return False
        return bool(token) and (token[0].isalnum() or token[0] in "(.√")

    def _atom(self) -> Number:
        if self._take("("):
            return self._bracketed(")", grouping=True)[0]
        if self._take("√"):
            return arithmetic.root(self._deeper(self._postfix), 2)
        token = self._peek()
        if token in self._named and not self._text[self._at :].lstrip().startswith(f"{token}("):
            self._take(token)
            return self._named[token]
        if not token or not (token[0] in "._" or token[0].isalnum()) or token in _UNITS:
            raise self._confused()
        self._take(token)
        if token[0].isdigit() or token[0] == ".":
            return number(token)
        name = token.removeprefix("math.")
        if name in FUNCTIONS and self._take("("):
            return self._call(name, FUNCTIONS[name])
        if name in _CONSTANTS:
            return _CONSTANTS[name]
        if name in FUNCTIONS:
            raise ToolError(f"{name} needs its argument in parentheses: {name}(…)")
        near = difflib.get_close_matches(name, [*FUNCTIONS, *_CONSTANTS], n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(FUNCTIONS)}, pi, e"
        raise ToolError(f"unknown name {name[:40]!r}; {hint}")

    def _bracketed(self, closing: str, *, grouping: bool) -> list[Number]:
        """The terms up to `closing`; several only where commas do not group."""
        outer, self._grouping = self._grouping, grouping
        values: list[Number] = []
        while not values or (not grouping and self._take(",")):
            if not grouping and self._take("["):
                values += self._bracketed("]", grouping=False)
            else:
                values.append(self._deeper(self._sum))
        if self._peek() != closing:
            raise self._confused()
        self._take(closing)
        self._grouping = outer
        return values

    def _call(self, name: str, function: Function) -> Number:
        start = self._at
        values = self._bracketed(")", grouping=function.most == 1)
        most = function.most
        if len(values) < function.least or (most is not None and len(values) > most):
            least = "" if most == function.least else f"{function.least} to "
            raise ToolError(
                f"{name} takes {least}{most} arguments, not {len(values)}; inside it a comma "
                "separates arguments, so write 1234 for 1,234"
            )
        written = self._text[start : self._at - 1]
        if len(values) > 1 and _GROUPED.search(written):
            self.notes.append(f"the commas in {name}({written.strip()}) separate its arguments")
        if name == "log" and len(values) == 1:
            self.notes.append("log is the natural logarithm; log10 is that to base 10")
        return function.compute(*values)


@tool
def calculate(expression: str) -> str:
    """Compute an arithmetic expression exactly.

    Knows + - * / // % ^ !, percentages (15% of 80), sqrt, cbrt, log, ln, log10, exp, sin, cos,
    tan, round, floor, ceil, min, max, sum, mean, median, gcd, lcm, comb, perm, pi, e, comparisons
    such as 3 > 2, numbers such as 1,234.5, 2.5 million, 3k or 2万, units (26.2 miles to km), and
    named steps (paid = 3 * 4.50; 20 - paid).

    expression: the expression, such as (3 + 4) * 2.5
    """
    if _ASSIGNED.match(expression):
        expression = expression.replace("\n", ";")
    text = expression.translate(_SPELLINGS).strip().rstrip("=? ;")
    if not text:
        raise ToolError("the expression is empty: give one such as 2 + 3")
    if len(text) > _LONGEST:
        raise ToolError(f"the expression has more than {_LONGEST} characters")
    named: dict[str, Number] = {}
    try:
        *lines, last = (line for line in text.split(";") if line.strip())
        for line in lines:
            name, value, _, _ = _line(line, named)
            if not name or isinstance(value, bool):
                raise ToolError(f"name the result of {line.strip()[:40]!r}, as in price = 3 * 4")
            named[name] = value
        _, value, unit, notes = _line(last, named)
    except decimal.DecimalException as error:
        raise ToolError("a number on the way is too large or too small to compute") from error
    shown = str(value).lower() if isinstance(value, bool) else written(value)
    if unit:
        shown = f"{shown.partition(' (')[0]} {unit}"
    return f"{shown} ({'; '.join(dict.fromkeys(notes))})" if notes else shown


def _line(text: str, named: Mapping[str, Number]) -> tuple[str, Number | bool, str, list[str]]:
    """A line of a program: the name that it gives, its value, the unit, and notes on it; there may
    be no name and no unit."""
    name = ""
    if (found := _ASSIGNED.match(text)) and found[1] not in _CONSTANTS:
        name, text = found[1], text[found.end() :]
    notes: list[str] = []

    def value_of(part: str) -> Number | bool:
        parser = _Parser(part, named)
        value = parser.result()
        notes.extend(parser.notes)
        return value

    if converted := units.conversion(text, value_of):
        return name, *converted, notes
    return name, value_of(text), "", notes
