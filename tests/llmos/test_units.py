"""Units against scipy's table of constants, and against the definitions."""

import pytest
import scipy.constants as known
from hypothesis import given
from hypothesis import strategies as st

from trivium.llmos.calculator import calculate
from trivium.llmos.tools import ToolError


@pytest.mark.parametrize(
    ("unit", "base", "factor"),
    [
        ("mile", "m", known.mile),
        ("inches", "m", known.inch),
        ("feet", "m", known.foot),
        ("yards", "m", known.yard),
        ("nautical miles", "m", known.nautical_mile),
        ("light-years", "m", 299_792_458 * 365.25 * 86400),
        ("ounces", "kg", known.oz),
        ("lbs", "kg", known.lb),
        ("stone", "kg", known.stone),
        ("tonnes", "kg", known.metric_ton),
        ("gallons", "m3", known.gallon),
        ("fluid ounces", "m3", known.fluid_ounce),
        ("cups", "m3", known.gallon / 16),
        ("tbsp", "m3", known.gallon / 256),
        ("teaspoons", "m3", known.gallon / 768),
        ("L", "cubic meters", known.liter),
        ("acres", "square metres", known.acre),
        ("hectares", "m²", known.hectare),
        ("mph", "m/s", known.mph),
        ("kilometres per hour", "m/s", known.kmh),
        ("knots", "m/s", known.knot),
        ("hp", "W", known.hp),
        ("kilowatt hours", "J", 3.6e6),
        ("psi", "Pa", known.psi),
        ("atm", "hPa", known.atm / 100),
        ("MB", "bytes", 1e6),
        ("GiB", "byte", known.gibi),
        ("weeks", "seconds", known.week),
    ],
)
def test_factors(unit: str, base: str, factor: float) -> None:
    """To 12 digits, which is what the other table has."""
    value, _, shown = calculate.function(f"7 {unit} to {base}").partition(" ")
    assert float(value.rstrip("…")) == pytest.approx(7 * factor, rel=1e-12)
    assert shown == base.replace("²", "^2")


@pytest.mark.parametrize(
    ("expression", "result"),
    [
        ("26.2 miles to km", "42.1648128 km"),
        ("5 ft + 11 in to cm", "180.34 cm"),
        ("2 hours - 15 min as minutes", "105 minutes"),
        ("5 in in cm", "12.7 cm"),
        ("2.5 * 3 hours into minutes", "450 minutes"),
        ("3 million miles to km", "4828032 km"),
        ("1,500 m to km", "1.5 km"),
        ("72 F to C", "22.22222222222222… C"),
        ("-40 celsius to fahrenheit", "-40 fahrenheit"),
        ("100 °C to °F", "212 °F"),
        ("37 degrees celsius to kelvin", "310.15 kelvin"),
        ("90 km/h to m/s", "25 m/s"),
        ("two = 2; (two + 1) km to m", "3000 m"),
    ],
)
def test_conversions(expression: str, result: str) -> None:
    assert calculate.function(expression) == result


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("5 kg to km", "kg and km do not measure the same thing"),
        ("5 aples to kg", "the unit 'aples' is not known"),
        ("5 kg to kilogrms", "the unit 'kilogrms' is not known: did you mean kilogram?"),
        ("20 C + 5 C to F", "temperatures of different scales cannot be added"),
        ("kg to g", "'kg' lacks a unit"),
        ("5 to km", "'5' lacks a unit"),
        ("1/0 km to m", "division by zero"),
        ("5 km to m/", "not known"),
    ],
)
def test_mistakes(expression: str, message: str) -> None:
    with pytest.raises(ToolError, match=message):
        calculate.function(expression)


@given(
    st.decimals(-1000, 1000, places=2),
    st.sampled_from(["km miles", "kg lb", "C F", "l cups", "km/h mph", "m2 acres", "h s"]),
)
def test_there_and_back(amount: object, pair: str) -> None:
    one, other = pair.split()
    there, _, unit = calculate.function(f"{amount} {one} to {other}").partition(" ")
    back, _, _ = calculate.function(f"{there.rstrip('…')} {unit} to {one}").partition(" ")
    assert float(back.rstrip("…")) == pytest.approx(float(str(amount)), rel=1e-9, abs=1e-9)
