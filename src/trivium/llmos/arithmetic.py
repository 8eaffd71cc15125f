"""Real numbers for the calculator: exact where the operation is exact, else 50 sure digits.

A number is a `Fraction` (exact) or a `Decimal` (an approximation, worked out to 60 digits of which
50 count). Every operation looks at the size of its result before it starts, so none runs for long:
`2**10000` is computed, `9**9**9` is refused. The functions of a circle are Taylor series after the
argument is brought near zero.
"""

import decimal
import math
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction

from trivium.llmos.tools import ToolError

Number = Fraction | Decimal

SURE = 50  # digits of an approximation that are right
LONGEST = 4000  # digits of a result; the interpreter itself prints up to 4300
_WORKING = 10_000  # digits of a number on the way to the result
_BITS = int(_WORKING / math.log10(2))
_PRECISION = 60
_CONTEXT = decimal.Context(
    prec=_PRECISION,
    Emax=999_999,
    Emin=-999_999,
    traps=[decimal.Overflow, decimal.Underflow, decimal.InvalidOperation],
)
_PI = Decimal(
    "3.1415926535897932384626433832795028841971693993751058209749445923"
    "078164062862089986280348253421170679821480865132823066470938446096"
)
_CIRCLE_PRECISION = 130
_WIDEST_ANGLE = 10**20  # beyond it, 130 digits of pi leave too few of the remainder
PI = _CONTEXT.plus(_PI)
E = _CONTEXT.exp(Decimal(1))


def bounded(value: Fraction) -> Number:
    """`value`; past 10,000 digits a fraction is approximated and a whole number refused."""
    if max(value.numerator.bit_length(), value.denominator.bit_length()) <= _BITS:
        return value
    if value.denominator == 1:
        raise ToolError(f"a number on the way has more than {_WORKING} digits")
    return approximate(value)


def approximate(value: Number) -> Decimal:
    """`value` to 60 digits."""
    if isinstance(value, Decimal):
        return value
    return _CONTEXT.divide(Decimal(value.numerator), Decimal(value.denominator))


def settled(value: Number) -> Fraction:
    """The exact number that `value` is to 50 digits: for floor and the like."""
    if isinstance(value, Fraction):
        return value
    return Fraction(decimal.Context(prec=SURE).plus(value))


def whole(value: Number, name: str) -> int:
    """`value` as an int, for functions of whole numbers."""
    if not isinstance(value, Fraction) or value.denominator != 1:
        raise ToolError(f"{name} takes whole numbers")
    return value.numerator


def absolute(a: Number) -> Number:
    return abs(a) if isinstance(a, Fraction) else a.copy_abs()  # abs() would round a Decimal


def add(a: Number, b: Number) -> Number:
    if isinstance(a, Fraction) and isinstance(b, Fraction):
        return bounded(a + b)
    left, right = approximate(a), approximate(b)
    total = _CONTEXT.add(left, right)
    # What is left after more than 50 digits have cancelled is noise of the approximations.
    larger = max(left.copy_abs(), right.copy_abs())
    return Decimal(0) if total.copy_abs() < larger.scaleb(-SURE, _CONTEXT) else total


def negative(a: Number) -> Number:
    return -a if isinstance(a, Fraction) else a.copy_negate()


def subtract(a: Number, b: Number) -> Number:
    return add(a, negative(b))


def multiply(a: Number, b: Number) -> Number:
    if isinstance(a, Fraction) and isinstance(b, Fraction):
        return bounded(a * b)
    return _CONTEXT.multiply(approximate(a), approximate(b))


def divide(a: Number, b: Number) -> Number:
    if not b:
        raise ToolError("division by zero")
    if isinstance(a, Fraction) and isinstance(b, Fraction):
        return bounded(a / b)
    return _CONTEXT.divide(approximate(a), approximate(b))


def floor_divide(a: Number, b: Number) -> Number:
    return Fraction(math.floor(settled(divide(a, b))))


def modulo(a: Number, b: Number) -> Number:
    """The remainder with the sign of `b`, as in Python and in number theory."""
    return subtract(a, multiply(b, floor_divide(a, b)))


def power(base: Number, exponent: Number) -> Number:
    if not base and exponent < 0:
        raise ToolError("division by zero: zero to a negative power")
    if isinstance(base, Fraction) and isinstance(exponent, Fraction):
        if exponent.denominator == 1:
            return _whole_power(base, exponent.numerator)
        if base < 0:
            raise ToolError(
                f"a negative number to the power {exponent} is not real (for the cube root of a "
                "negative number use cbrt)"
            )
        root = _exact_root(base, exponent.denominator)
        if root is not None:
            return _whole_power(root, exponent.numerator)
    if base < 0:
        raise ToolError("a negative number to a power that is not whole is not real")
    return _CONTEXT.power(approximate(base), approximate(exponent)) if base else Fraction(0)


def _whole_power(base: Fraction, exponent: int) -> Number:
    if abs(base) in (0, 1):
        return base ** (exponent % 2 or 2) if exponent else Fraction(1)
    bits = max(base.numerator.bit_length(), base.denominator.bit_length())
    if (bits - 1 or 1) * abs(exponent) <= _BITS:  # |n| >= 2**(bits - 1)
        return Fraction(base**exponent)
    if base.denominator == 1 and exponent > 0:
        raise ToolError(f"the power has more than {_WORKING} digits")
    return _CONTEXT.power(approximate(base), Decimal(exponent))


def _exact_root(value: Fraction, degree: int) -> Fraction | None:
    """The `degree`-th root of a number that is not negative, if it is rational."""
    roots = []
    for number in (value.numerator, value.denominator):
        root = _whole_root(number, degree)
        if root is None:
            return None
        roots.append(root)
    return Fraction(*roots)


def _whole_root(number: int, degree: int) -> int | None:
    """The whole `degree`-th root, if there is one: a guess to 50 digits, then Newton from above."""
    if number < 2:
        return number
    if degree >= number.bit_length():
        return None
    size = _CONTEXT.plus(Decimal(number))
    guess = _CONTEXT.power(size, _CONTEXT.divide(Decimal(1), Decimal(degree)))
    found = round(guess)
    if guess.adjusted() >= SURE - 10:  # the guess does not reach down to the ones
        margin = guess.scaleb(10 - SURE, _CONTEXT)
        found = _newton(number, degree, int(_CONTEXT.add(guess, margin)) + 1)
    return found if found**degree == number else None


def _newton(number: int, degree: int, found: int) -> int:
    """The whole part of the root, from a number not below it."""
    while (closer := ((degree - 1) * found + number // found ** (degree - 1)) // degree) < found:
        found = closer
    return found


def root(value: Number, degree: int) -> Number:
    """The real root: of a negative number too where the degree is odd."""
    if value < 0:
        if degree % 2 == 0:
            raise ToolError("the square root of a negative number is not real")
        return negative(root(negative(value), degree))
    return power(value, Fraction(1, degree))


def factorial(value: Number) -> Number:
    n = whole(value, "factorial")
    if n < 0:
        raise ToolError("factorial takes whole numbers from zero on")
    if n > 100_000 or math.lgamma(n + 1) / math.log(10) > LONGEST:
        raise ToolError(f"the factorial of {value if n < 10**9 else 'that'} is too long to compute")
    return Fraction(math.factorial(n))


def combinations(n: Number, k: Number, *, ordered: bool) -> Number:
    """Ways to choose `k` of `n`: with `ordered`, their order counts."""
    name = "perm" if ordered else "comb"
    total, chosen = whole(n, name), whole(k, name)
    if total < 0 or chosen < 0:
        raise ToolError(f"{name} takes whole numbers from zero on")
    if not ordered and chosen <= total:
        chosen = min(chosen, total - chosen)
    if chosen <= total and chosen * total.bit_length() > _BITS:
        raise ToolError(f"{name} of numbers this large is too long to compute")
    return Fraction(math.perm(total, chosen) if ordered else math.comb(total, chosen))


def greatest_divisor(*values: Number) -> Number:
    return Fraction(math.gcd(*(whole(value, "gcd") for value in values)))


def least_multiple(*values: Number) -> Number:
    result = 1
    for value in values:
        bounded(Fraction(result := math.lcm(result, whole(value, "lcm"))))
    return Fraction(result)


def modular_power(base: Number, exponent: Number, modulus: Number) -> Number:
    b, e, m = (whole(value, "pow with three arguments") for value in (base, exponent, modulus))
    if not m:
        raise ToolError("division by zero")
    if e.bit_length() * m.bit_length() > 10**7:
        raise ToolError("pow of numbers this large is too long to compute")
    try:
        return Fraction(pow(b, e, m))
    except ValueError as error:
        raise ToolError(f"pow: {error}") from error


def exponential(x: Number) -> Number:
    return _CONTEXT.exp(approximate(x)) if x else Fraction(1)


def logarithm(x: Number, base: Number | None = None) -> Number:
    """The natural logarithm, or that to `base`; exact where it is a whole number or a ratio."""
    if x <= 0:
        raise ToolError("the logarithm of zero or of a negative number is not real")
    if base is None:
        return Fraction(0) if x == 1 else _CONTEXT.ln(approximate(x))
    if base <= 0 or base == 1:
        raise ToolError("a logarithm needs a positive base other than 1")
    quotient = divide(logarithm(x), logarithm(base))
    if isinstance(x, Fraction) and isinstance(base, Fraction):
        guess = settled(quotient).limit_denominator(1000)
        if abs(guess) < _BITS and _is_power(base, guess, x):
            return guess
    return quotient


def _is_power(base: Fraction, exponent: Fraction, value: Fraction) -> bool:
    """Whether base ** exponent is exactly `value`: base ** p == value ** q."""
    try:
        left = _whole_power(base, exponent.numerator)
        right = _whole_power(value, exponent.denominator)
    except (ToolError, decimal.DecimalException):
        return False
    return isinstance(left, Fraction) and isinstance(right, Fraction) and left == right


def sine(x: Number) -> Number:
    return _circle(x, Fraction(0))


def cosine(x: Number) -> Number:
    return _circle(x, Fraction(1, 2))


def tangent(x: Number) -> Number:
    below = cosine(x)
    if not below:
        raise ToolError("the tangent is not defined there")
    return divide(sine(x), below)


def _circle(x: Number, turn: Fraction) -> Number:
    """sin(x + turn·pi): the remainder of x by pi, in [-pi/2, pi/2], through the Taylor series."""
    if not x:
        return turn * 2
    if absolute(x) > _WIDEST_ANGLE:
        raise ToolError("the angle is too large to be exact about")
    with decimal.localcontext(_CONTEXT) as context:
        context.prec = _CIRCLE_PRECISION
        angle = _wide(x)
        shifted = angle + _PI * turn.numerator / turn.denominator
        halves = (shifted / _PI).to_integral_value()
        rest = shifted - halves * _PI
        # An approximate angle is known to 60 digits, and so is the rest: what is below is zero.
        if abs(rest) < max(abs(angle), Decimal(1)).scaleb(-SURE):
            return Fraction(0)
        term = total = rest
        n = 1
        while abs(term) > abs(rest).scaleb(-_PRECISION):
            term *= -rest * rest / ((n + 1) * (n + 2))
            total += term
            n += 2
        return _CONTEXT.plus(-total if halves % 2 else total)


def arctangent(x: Number) -> Number:
    """Halve the angle until the series is quick: atan x = 2 atan(x / (1 + sqrt(1 + x²)))."""
    if not x:
        return Fraction(0)
    with decimal.localcontext(_CONTEXT) as context:
        context.prec = _CIRCLE_PRECISION
        y = _wide(x)
        inverted = abs(y) > 1
        if inverted:
            y = 1 / y
        for _ in range(5):
            y = y / (1 + (1 + y * y).sqrt())
        total, factor, n = y, y, 1
        while abs(factor) > abs(y).scaleb(-_PRECISION):
            factor *= -y * y
            n += 2
            total += factor / n
        total *= 32
        if inverted:
            total = (_PI / 2).copy_sign(total) - total
        return _CONTEXT.plus(total)


def _wide(x: Number) -> Decimal:
    return x if isinstance(x, Decimal) else Decimal(x.numerator) / Decimal(x.denominator)


def arcsine(x: Number) -> Number:
    if absolute(x) > 1:
        raise ToolError("arcsine and arccosine take numbers from -1 to 1")
    if absolute(x) == 1:
        return multiply(x, divide(PI, Fraction(2)))
    return arctangent(divide(x, root(subtract(Fraction(1), multiply(x, x)), 2)))


def arccosine(x: Number) -> Number:
    return subtract(divide(PI, Fraction(2)), arcsine(x))


def rounded(value: Number, digits: int, step: Callable[[Fraction], int]) -> Number:
    """`step` (floor, ceil or half-up) applied at a decimal place."""
    if abs(digits) > LONGEST:
        raise ToolError(f"rounding takes at most {LONGEST} decimal places")
    scale = Fraction(10) ** digits
    return bounded(Fraction(step(settled(value) * scale)) / scale)


def half_away(value: Fraction) -> int:
    """To the nearest whole number, halves away from zero, as taught at school."""
    nearest = math.floor(abs(value) + Fraction(1, 2))
    return nearest if value >= 0 else -nearest
