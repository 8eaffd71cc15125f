"""Units of measurement, for "26.2 miles to km", "5 ft + 11 in to cm" and "72 F to celsius".

    conversion   quantity (('+' | '-') quantity)* ('to' | 'in' | 'into' | 'as') unit
    quantity     expression unit
    unit         factor (('/' | 'per') factor)*               km/h, miles per hour, kWh
    factor       ('square' | 'cubic')? name ('^'? digits)?    m2, square feet, cm^3

Factors are exact by definition (BIPM, The International System of Units, 2019; NIST Special
Publication 811, 2008). Gallons, pints, cups and spoons are those of the United States, a year has
365 days and a month a twelfth of it, and a kilobyte has 1000 bytes.
"""

import difflib
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import cache

from trivium.llmos import arithmetic
from trivium.llmos.arithmetic import Number
from trivium.llmos.tools import ToolError


@dataclass(frozen=True)
class Unit:
    """`factor` of the base units in `powers`; `zero` is where a scale of temperature begins."""

    factor: Fraction
    powers: tuple[tuple[str, int], ...]
    zero: Fraction = Fraction(0)


_UNITS: dict[str, tuple[str | Fraction, dict[str, int]]] = {  # names: factor, powers of bases
    "m metre meter": ("1", {"m": 1}),
    "inch inches in": ("0.0254", {"m": 1}),
    "ft foot feet": ("0.3048", {"m": 1}),
    "yd yard": ("0.9144", {"m": 1}),
    "mi mile": ("1609.344", {"m": 1}),
    "nmi nauticalmile": ("1852", {"m": 1}),
    "lightyear": ("9460730472580800", {"m": 1}),
    "g gram gramme gr": ("0.001", {"kg": 1}),
    "t tonne ton metricton": ("1000", {"kg": 1}),
    "oz ounce": ("0.028349523125", {"kg": 1}),
    "lb pound": ("0.45359237", {"kg": 1}),
    "st stone": ("6.35029318", {"kg": 1}),
    "carat ct": ("0.0002", {"kg": 1}),
    "s sec second": ("1", {"s": 1}),
    "min minute": ("60", {"s": 1}),
    "h hr hour": ("3600", {"s": 1}),
    "d day": ("86400", {"s": 1}),
    "week wk": ("604800", {"s": 1}),
    "month": ("2628000", {"s": 1}),
    "year yr": ("31536000", {"s": 1}),
    "decade": ("315360000", {"s": 1}),
    "century centurie": ("3153600000", {"s": 1}),
    "byte B": ("1", {"byte": 1}),
    "bit": ("0.125", {"byte": 1}),
    "degree deg": ("1", {"degree": 1}),
    "radian rad": (Fraction(180) / arithmetic.settled(arithmetic.PI), {"degree": 1}),
    "dozen": ("12", {}),
    "l L litre liter": ("0.001", {"m": 3}),
    "cc ccm": ("0.000001", {"m": 3}),
    "gal gallon": ("0.003785411784", {"m": 3}),
    "qt quart": ("0.000946352946", {"m": 3}),
    "pt pint": ("0.000473176473", {"m": 3}),
    "cup": ("0.0002365882365", {"m": 3}),
    "floz fluidounce": ("0.0000295735295625", {"m": 3}),
    "tbsp tablespoon": ("0.00001478676478125", {"m": 3}),
    "tsp teaspoon": ("0.00000492892159375", {"m": 3}),
    "ha hectare": ("10000", {"m": 2}),
    "acre ac": ("4046.8564224", {"m": 2}),
    "sqft": ("0.09290304", {"m": 2}),
    "sqm": ("1", {"m": 2}),
    "mph": ("0.44704", {"m": 1, "s": -1}),
    "kmh kph": (Fraction(1000, 3600), {"m": 1, "s": -1}),
    "knot kn kt": (Fraction(1852, 3600), {"m": 1, "s": -1}),
    "N newton": ("1", {"kg": 1, "m": 1, "s": -2}),
    "J joule": ("1", {"kg": 1, "m": 2, "s": -2}),
    "cal calorie": ("4.184", {"kg": 1, "m": 2, "s": -2}),
    "W watt": ("1", {"kg": 1, "m": 2, "s": -3}),
    "Wh watthour": ("3600", {"kg": 1, "m": 2, "s": -2}),
    "hp horsepower": ("745.69987158227022", {"kg": 1, "m": 2, "s": -3}),
    "Pa pascal": ("1", {"kg": 1, "m": -1, "s": -2}),
    "bar": ("100000", {"kg": 1, "m": -1, "s": -2}),
    "psi": ("6894.757293168361", {"kg": 1, "m": -1, "s": -2}),
    "atm atmosphere": ("101325", {"kg": 1, "m": -1, "s": -2}),
    "Hz hertz": ("1", {"s": -1}),
}
_TEMPERATURES = {  # name: kelvins of a degree, kelvins at its zero
    "c celsius centigrade °c": (Fraction(1), Fraction("273.15")),
    "f fahrenheit °f": (Fraction(5, 9), Fraction("459.67") * Fraction(5, 9)),
    "k kelvin": (Fraction(1), Fraction(0)),
}
_PREFIXES = {
    prefix: Fraction(10) ** power
    for prefixes, power in (
        ("T tera", 12),
        ("G giga", 9),
        ("M mega", 6),
        ("k K kilo", 3),
        ("h hecto", 2),
        ("d deci", -1),
        ("c centi", -2),
        ("m milli", -3),
        ("u µ micro", -6),
        ("n nano", -9),
    )
    for prefix in prefixes.split()
} | {"Ki": Fraction(2**10), "Mi": Fraction(2**20), "Gi": Fraction(2**30), "Ti": Fraction(2**40)}
_PREFIXED = {
    *("m", "metre", "meter", "g", "gram", "gramme", "l", "L", "litre", "liter", "s", "second"),
    *("byte", "B", "bit", "N", "newton", "J", "joule", "cal", "calorie", "W", "watt", "Wh"),
    *("watthour", "Pa", "pascal", "bar", "Hz", "hertz"),
}
_SEVERAL_WORDS = [  # units of several words, as one
    (re.compile(pattern, re.IGNORECASE), short)
    for pattern, short in (
        (r"fl(?:uid|\.)? ?(?:oz|ounces?)\b\.?", "floz"),
        (r"nautical miles?", "nmi"),
        (r"light[- ]years?", "lightyear"),
        (r"metric tons?", "tonne"),
        (r"watt[- ]hours?", "watthour"),
        (r"(?:degrees?|deg) (?=[CF]\b|celsius|fahrenheit)|° ?(?=[CF])", ""),
    )
]
_FACTOR = re.compile(r"(square |sq\.? ?|cubic )?([A-Za-zµ°]+)\.? ?\^?([23²³])?", re.IGNORECASE)
_CONVERSION = re.compile(r"(.+) (?:to|in|into|as) +([A-Za-zµ°].*)")
_NEXT_QUANTITY = re.compile(r"(?<=[A-Za-z²³]) *([+-]) *(?=[0-9(.])(?![^()]*\))")
_QUANTITY = re.compile(
    r"(.*[0-9)](?: *(?:hundred|thousand|million|billion|trillion|万|亿)\b)?) *([A-Za-zµ°].*)"
)


def conversion(text: str, compute: Callable[[str], Number | bool]) -> tuple[Number, str] | None:
    """The amount in the unit that is asked for, and that unit; None if it is no conversion.

    compute: the value of an expression without units. Raises ToolError for units that are not
    known, or that do not measure the same.
    """
    found = _CONVERSION.fullmatch(" ".join(text.split()))
    if found is None:
        return None
    target = _unit(found[2])
    pieces = _NEXT_QUANTITY.split(found[1])
    total: Number = Fraction(0)
    for sign, piece in zip(["+", *pieces[1::2]], pieces[::2], strict=True):
        quantity = _QUANTITY.fullmatch(piece.strip())
        if quantity is None:
            raise ToolError(f"{piece.strip()[:40]!r} lacks a unit, as in 26.2 miles to km")
        unit = _unit(quantity[2])
        if unit.powers != target.powers:
            raise ToolError(f"{quantity[2][:40]} and {found[2][:40]} do not measure the same thing")
        if unit.zero != target.zero and len(pieces) > 1:
            raise ToolError("temperatures of different scales cannot be added: convert one")
        amount = compute(quantity[1])
        if isinstance(amount, bool):
            raise ToolError(f"{quantity[1][:40]!r} is no amount")
        value = arithmetic.multiply(amount, unit.factor)
        if len(pieces) == 1:
            value = arithmetic.add(value, unit.zero - target.zero)
        total = (arithmetic.add if sign == "+" else arithmetic.subtract)(total, value)
    return arithmetic.divide(total, target.factor), found[2]


def _unit(text: str) -> Unit:
    name = text.strip()
    for pattern, short in _SEVERAL_WORDS:
        name = pattern.sub(short, name)
    factor, powers, zero = Fraction(1), Counter[str](), Fraction(0)
    for number, part in enumerate(re.split(r"/| per ", name)):
        found = _FACTOR.fullmatch(part.strip())
        unit = _named(found[2]) if found else None
        if found is None or unit is None:
            near = difflib.get_close_matches(name, _known(), n=1)
            hint = f": did you mean {near[0]}?" if near else ""
            raise ToolError(f"the unit {text[:40]!r} is not known{hint}")
        worded = {"s": 2, "c": 3}.get((found[1] or " ")[0].lower(), 1)
        power = {"2": 2, "²": 2, "3": 3, "³": 3}.get(found[3], worded) * (-1 if number else 1)
        factor *= unit.factor**power
        for base, count in unit.powers:
            powers[base] += count * power
        zero = unit.zero
    return Unit(factor, tuple(sorted((k, v) for k, v in powers.items() if v)), zero)


@cache
def _known() -> dict[str, Unit]:
    made: dict[str, Unit] = {}
    for names, (factor, powers) in _UNITS.items():
        unit = Unit(Fraction(factor), tuple(sorted(powers.items())))
        made |= dict.fromkeys(names.split(), unit)
    for name in _PREFIXED:
        for prefix, size in _PREFIXES.items():
            scaled = Unit(size * made[name].factor, made[name].powers)
            made.setdefault(prefix + name, scaled)
    for names, (degree, zero) in _TEMPERATURES.items():
        for name in names.split():
            unit = Unit(degree, (("K", 1),), zero)
            made |= dict.fromkeys((name.upper(), f"deg{name}", f"degree{name}"), unit)
            made.setdefault(name, unit)
    return made


def _named(name: str) -> Unit | None:
    known = _known()
    for spelled in (name, name.lower(), name[0].lower() + name[1:]):
        for short in (spelled, spelled.removesuffix("s"), spelled.removesuffix("es")):
            if short in known:
                return known[short]
    return None
