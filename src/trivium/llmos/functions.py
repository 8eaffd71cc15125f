"""The functions that the calculator knows, and how many arguments each takes."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import reduce

from trivium.llmos import arithmetic
from trivium.llmos.arithmetic import Number


def _median(*values: Number) -> Number:
    ordered = sorted(values)
    middle = len(ordered) // 2
    if len(ordered) % 2:
        return ordered[middle]
    return arithmetic.divide(arithmetic.add(ordered[middle - 1], ordered[middle]), Fraction(2))


def _sum(*values: Number) -> Number:
    return reduce(arithmetic.add, values)


def _mean(*values: Number) -> Number:
    return arithmetic.divide(_sum(*values), Fraction(len(values)))


def _power(base: Number, exponent: Number, modulus: Number | None = None) -> Number:
    if modulus is None:
        return arithmetic.power(base, exponent)
    return arithmetic.modular_power(base, exponent, modulus)


def _round(value: Number, digits: Number = Fraction(0)) -> Number:
    places = arithmetic.whole(digits, "the second argument of round")
    return arithmetic.rounded(value, places, arithmetic.half_away)


def _degrees(value: Number) -> Number:
    return arithmetic.divide(arithmetic.multiply(value, Fraction(180)), arithmetic.PI)


def _radians(value: Number) -> Number:
    return arithmetic.divide(arithmetic.multiply(value, arithmetic.PI), Fraction(180))


@dataclass(frozen=True)
class Function:
    compute: Callable[..., Number]
    least: int = 1  # arguments
    most: int | None = 1  # None: any number


FUNCTIONS = {
    "sqrt": Function(lambda x: arithmetic.root(x, 2)),
    "cbrt": Function(lambda x: arithmetic.root(x, 3)),
    "pow": Function(_power, 2, 3),
    "mod": Function(arithmetic.modulo, 2, 2),
    "exp": Function(arithmetic.exponential),
    "log": Function(arithmetic.logarithm, 1, 2),
    "ln": Function(arithmetic.logarithm),
    "log10": Function(lambda x: arithmetic.logarithm(x, Fraction(10))),
    "log2": Function(lambda x: arithmetic.logarithm(x, Fraction(2))),
    "sin": Function(arithmetic.sine),
    "cos": Function(arithmetic.cosine),
    "tan": Function(arithmetic.tangent),
    "asin": Function(arithmetic.arcsine),
    "acos": Function(arithmetic.arccosine),
    "atan": Function(arithmetic.arctangent),
    "degrees": Function(_degrees),
    "radians": Function(_radians),
    "abs": Function(arithmetic.absolute),
    "round": Function(_round, 1, 2),
    "floor": Function(lambda x: arithmetic.rounded(x, 0, math.floor)),
    "ceil": Function(lambda x: arithmetic.rounded(x, 0, math.ceil)),
    "min": Function(min, 1, None),
    "max": Function(max, 1, None),
    "sum": Function(_sum, 1, None),
    "mean": Function(_mean, 1, None),
    "average": Function(_mean, 1, None),
    "median": Function(_median, 1, None),
    "gcd": Function(arithmetic.greatest_divisor, 1, None),
    "lcm": Function(arithmetic.least_multiple, 1, None),
    "factorial": Function(arithmetic.factorial),
    "comb": Function(lambda n, k: arithmetic.combinations(n, k, ordered=False), 2, 2),
    "perm": Function(lambda n, k: arithmetic.combinations(n, k, ordered=True), 2, 2),
}
