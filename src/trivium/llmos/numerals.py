"""Numbers as text: numerals read exactly, results written with every digit that is sure.

    exact and ending         0.3    1267650600228229401496703205376
    exact, without an end    0.3333333333333333… (1/3)
    approximate              1.414213562373095…
    very large or small      2.688117141816135…e+43

Digits before an ellipsis are cut, not rounded, so that each one shown is a digit of the number.
"""

import decimal
from decimal import Decimal
from fractions import Fraction

from trivium.llmos import arithmetic
from trivium.llmos.arithmetic import Number
from trivium.llmos.tools import ToolError

_EXPONENT = 4000
_SHOWN = 16  # digits of a number that cannot be written out
_PLACES = 50  # decimal places of an exact number that are written out


def number(token: str) -> Number:
    """The exact value of a numeral as written: 1,234.5, 6e23, 1_000, 0x1F."""
    text = token.replace(",", "").replace("_", "")
    if text[:2].lower() in ("0x", "0b", "0o"):
        return Fraction(int(text, 0))
    exponent = text.lower().partition("e")[2]
    if exponent and (len(exponent) > 6 or abs(int(exponent)) > _EXPONENT):
        raise ToolError(f"the exponent of {token[:40]} is beyond {_EXPONENT}")
    return Fraction(Decimal(text))


def written(value: Number) -> str:
    """The number in digits: all of them where it is exact and they end, else 16 and an ellipsis."""
    if isinstance(value, Fraction):
        if value.denominator == 1:
            if abs(value) >= 10**arithmetic.LONGEST:
                raise ToolError(f"the result has more than {arithmetic.LONGEST} digits")
            return str(value.numerator)
        places = _decimal_places(value.denominator)
        if places is not None and places <= _PLACES and abs(value) < 10**arithmetic.LONGEST:
            scaled = abs(value.numerator) * 10**places // value.denominator
            digits = str(scaled).rjust(places + 1, "0")
            sign = "-" if value < 0 else ""
            return f"{sign}{digits[:-places]}.{digits[-places:]}"
        sure = arithmetic.approximate(value)
    else:
        sure = decimal.Context(prec=arithmetic.SURE).plus(value)
    shown = decimal.Context(prec=_SHOWN, rounding=decimal.ROUND_DOWN).plus(sure)
    ellipsis = "" if shown == (value if isinstance(value, Fraction) else sure) else "…"
    if not ellipsis:
        shown = shown.normalize()
    places = (_SHOWN if ellipsis else len(shown.as_tuple().digits)) - 1
    if -7 <= shown.adjusted() < _SHOWN - 1:
        text = f"{shown:.{max(places - shown.adjusted(), 0)}f}{ellipsis}"
    else:
        mantissa, _, exponent = f"{shown:.{places}e}".partition("e")
        text = f"{mantissa}{ellipsis}e{exponent}"
    if ellipsis and isinstance(value, Fraction) and value.denominator < 10**40 > abs(value):
        return f"{text} ({value.numerator}/{value.denominator})"
    return text


def _decimal_places(denominator: int) -> int | None:
    """The decimal places that a fraction in lowest terms needs, or None when they do not end."""
    twos = (denominator & -denominator).bit_length() - 1
    rest, fives = denominator >> twos, 0
    while rest % 5 == 0:
        rest, fives = rest // 5, fives + 1
    return max(twos, fives) if rest == 1 else None
