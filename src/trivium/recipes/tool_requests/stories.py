"""Word problems: a story with numbers, the expression that solves it, and how to say the result.

A row of the tables is (slots, text, expression, answer). Slots are `name=kind`: a range of whole
numbers, or a kind below. In the text a number is shown as people write it (with a currency, with a
comma for thousands, or as a word); the expression has its digits. {N} is {n} at the beginning of a
sentence; {r} in the answer is the result, {rm} the result as money.
"""

import random
import re
from collections.abc import Callable

from trivium.llmos.calculator import calculate
from trivium.recipes.tool_requests.patterns import Subject, careless, filled, polite
from trivium.recipes.tool_requests.tables import table, words
from trivium.recipes.tool_requests.tasks import Exchange, Step, number_word, spoken_number

TABLES = ("stories_money", "stories_measure", "stories_more")
CURRENCIES = ("{} euros", "{} dollars", "${}", "€{}", "£{}", "{} €", "{} pounds", "{} francs", "{}")
PERCENT = ("{}%", "{}%", "{}%", "{} percent", "{} per cent")
CONVERSIONS = (  # from, to, factor
    ("miles", "kilometres", "1.609344"),
    ("inches", "cm", "2.54"),
    ("feet", "metres", "0.3048"),
    ("pounds", "kg", "0.45359237"),
    ("km", "metres", "1000"),
    ("hours", "minutes", "60"),
    ("days", "hours", "24"),
    ("weeks", "days", "7"),
    ("kg", "grams", "1000"),
    ("gallons", "litres", "3.785411784"),
    ("minutes", "seconds", "60"),
    ("years", "months", "12"),
    ("ounces", "grams", "28.349523125"),
    ("GB", "MB", "1000"),
    ("dozens", "pieces", "12"),
)
ASIDES = (
    "It is {day} today.",
    "The shop closes at {aside}.",
    "My train leaves at {aside}.",
    "I am {aside} years old.",
    "It took {aside} minutes to get there.",
    "We have been here {aside} times.",
    "There are {aside} people in line.",
)
Draw = Callable[[random.Random], str]


def subjects() -> list[Subject]:
    """Who stories are about; "I" and "we" most often."""
    women, men = words("she"), words("he")
    return [
        *(Subject("I", "I", "my", False) for _ in range(24)),
        *(Subject("we", "we", "our", False) for _ in range(8)),
        *(Subject(name, "she", "her", True) for name in women),
        *(Subject(name, "he", "his", True) for name in men),
        *(Subject(name, "she", "her", True) for name in words("she_kin")),
        *(Subject(name, "he", "his", True) for name in words("he_kin")),
    ]


# -- numbers --------------------------------------------------------------------------------------


def _price(rng: random.Random) -> str:
    whole = rng.choice((rng.randint(1, 9), rng.randint(1, 30), rng.randint(5, 90)))
    return rng.choice(
        (f"{whole}", f"{whole}.50", f"{whole}.{rng.randint(1, 99):02}", f"{whole}.99")
    )


def _small(rng: random.Random) -> str:
    whole = str(rng.randint(1, 40))
    return rng.choice((whole, f"{rng.randint(0, 9)}.{rng.randint(1, 99):02}"))


def _round_number(low: int, high: int) -> Draw:
    def draw(rng: random.Random) -> str:
        value = rng.randint(low, high)
        step = rng.choice((1, 5, 10, 50) if value > 200 else (1, 1, 5))
        return str(max(low, value // step * step))

    return draw


def _big(rng: random.Random) -> str:
    value = _round_number(15, rng.choice((99, 300, 2000)))(rng)
    return value + (f".{rng.randint(1, 99):02}" if rng.random() < 0.2 else "")


def _decimal(rng: random.Random) -> str:
    return f"{rng.randint(0, 12)}.{rng.choice((5, 5, 25, 75, rng.randint(1, 9)))}"


def _whole_and(low: int, high: int, *endings: str) -> Draw:
    """A whole number with one of the endings."""
    return lambda rng: f"{rng.randint(low, high)}{rng.choice(endings)}"


def _one_of(*values: str) -> Draw:
    return lambda rng: rng.choice(values)


def _speed(rng: random.Random) -> str:
    return str(rng.choice((rng.randint(4, 30), rng.randint(8, 26) * 5)))


def _percentage(rng: random.Random) -> str:
    usual = (5, 10, 15, 20, 25, 30, 35, 40, 60, 70, 75)
    return str(rng.choice((*usual, rng.randint(2, 95))))


MONEY_KINDS: dict[str, Draw] = {
    "price": _price,
    "small": _small,
    "big": _big,
    "note": _one_of("20", "50", "100", "200", "500"),
    "money": _round_number(10, 900),
    "wage": _whole_and(8, 95, "", "", ".50", ".75", ".80"),
    "salary": _round_number(900, 6000),
    "rent": _round_number(300, 890),
    "bill": _whole_and(5, 120, "", "", ".99", ".50"),
    "price2": _whole_and(12, 90, "", ".50", ".90"),
    "coins": lambda rng: f"0.{rng.choice(('08', '15', '25', '30', '50'))}",
    "rate3": lambda rng: f"0.{rng.randint(18, 60)}",
    "petrol": lambda rng: f"1.{rng.randint(20, 99)}",
}
NUMBER_KINDS: dict[str, Draw] = {
    "dec": _decimal,
    "dec2": _whole_and(20, 70, "", ".5", ".2", ".8"),
    "decs": _one_of("0.5", "0.8", "1.5", "2", "1.2", "0.25"),
    "dist": _round_number(60, 900),
    "speed": _speed,
    "fuel": _whole_and(4, 11, "", ".5", ".2", ".8"),
    "minutes": lambda rng: str(rng.choice((15, 20, 25, 30, 40, 45, 50, 75, 90, 100, 120))),
    "rate2": lambda rng: f"{rng.randint(0, 9)}.{rng.randint(10, 99)}",
}
PERCENT_KINDS: dict[str, Draw] = {
    "percent": _percentage,
    "tax": _one_of("19", "20", "7", "10", "15", "18", "8.5", "12", "21"),
    "rate": _one_of("2", "3", "4", "5", "1.5", "2.5", "3.2", "6"),
}
WORD_KINDS = {  # the table of words for each
    "thing": "things",
    "thing1": "items",
    "item": "items",
    "food": "foods",
    "group": "groups",
    "people": "people",
    "baked": "baked",
    "billname": "bills",
    "coin": "coins",
}
ALWAYS = {  # slots that every text may use
    "place": "places",
    "boxes": "boxes",
    "room": "rooms",
    "veh": "vehicles",
    "mach": "machines",
    "work": "work",
    "animal": "animals",
    "month": "months",
    "o": "names",
    "item": "items",
    "item2": "items",
    "item3": "items",
    "food2": "things",
    "baked2": "baked",
    "c2": "bills",
    "city": "trips",
    "day": "days1",
    "day2": "days2",
    "day3": "days3",
    "t": "things",
    "u": "things",
    "f": "foods",
    "g": "groups",
    "b": "baked",
}


def _shown(digits: str, rng: random.Random) -> str:
    """A plain number as people write it."""
    if digits.isdigit() and int(digits) <= 12 and rng.random() < 0.35:
        return number_word(int(digits))
    if digits.isdigit() and int(digits) >= 1000 and rng.random() < 0.5:
        return f"{int(digits):,}"
    return digits


def _grouped(digits: str, rng: random.Random) -> str:
    whole, _, rest = digits.partition(".")
    if len(whole) < 4 or rng.random() < 0.4:
        return digits
    return f"{int(whole):,}" + (f".{rest}" if rest else "")


# -- a story --------------------------------------------------------------------------------------


def _drawn(spec: str, expression: str, rng: random.Random) -> tuple[dict[str, str], dict[str, str]]:
    """What the slots show, and the digits of the numbers."""
    shown = {name: rng.choice(words(of)) for name, of in ALWAYS.items()}
    digits: dict[str, str] = {}
    currency, percent = rng.choice(CURRENCIES), rng.choice(PERCENT)
    given = dict(part.split("=") for part in spec.split() if "=" in part)
    for name in set(re.findall(r"\b[a-z]\b", expression)) - set(given):
        given[name] = "2-12"
    for name, kind in sorted(given.items()):
        if kind in WORD_KINDS:
            shown[name] = rng.choice(words(WORD_KINDS[kind]))
        elif kind == "conv":
            shown["u1"], shown["u2"], digits["uf"] = rng.choice(CONVERSIONS)
        elif kind in MONEY_KINDS:
            digits[name] = MONEY_KINDS[kind](rng)
            shown[name] = currency.format(_grouped(digits[name], rng))
            shown[f"{name}_n"] = digits[name]
        elif kind in PERCENT_KINDS:
            digits[name] = PERCENT_KINDS[kind](rng)
            shown[name] = percent.format(digits[name])
        elif kind in NUMBER_KINDS:
            shown[name] = digits[name] = NUMBER_KINDS[kind](rng)
        else:
            low, high = map(int, kind.split("-"))
            digits[name] = str(rng.randint(low, rng.choice((high, min(high, low + 10)))))
            shown[name], shown[f"{name}_y"] = _shown(digits[name], rng), digits[name]
    shown["money"] = currency
    return shown, digits


def story(rng: random.Random, tables: tuple[str, ...] = TABLES) -> Exchange:
    """A word problem with its call and its answer. Impossible ones are drawn again."""
    rows = [row for name in tables for row in table(name)]
    while True:
        spec, text, pattern, answer = rng.choice(rows)
        shown, digits = _drawn(spec, pattern, rng)
        expression = _with_digits(pattern, digits)
        result = str(calculate.function(expression))
        if result.startswith("-") or result == "0" or ("…" in result and rng.random() < 0.6):
            continue
        subject = rng.choice(subjects())
        shown |= {"es_": "", "s_": "s" if subject.third else "", "them": subject.pronoun}
        shown["aside"] = str(rng.randint(3, 40))
        request = filled(text, rng, shown, subject)
        if rng.random() < 0.1:
            request = _with_aside(request, filled(rng.choice(ASIDES), rng, shown), rng)
        request = polite(careless(request[:1].upper() + request[1:], rng), rng)
        step = Step("calculate", {"expression": expression}, result)
        return Exchange(request, (step,), _said(result, answer, shown, rng))


def _with_digits(pattern: str, digits: dict[str, str]) -> str:
    return re.sub(r"\b[a-z]f?\b", lambda found: digits.get(found[0], found[0]), pattern)


def _with_aside(request: str, aside: str, rng: random.Random) -> str:
    """The story with a sentence that does not matter."""
    if ". " in request and rng.random() < 0.6:
        head, _, tail = request.partition(". ")
        return f"{head}. {aside} {tail}"
    return f"{aside} {request}"


def _said(result: str, answer: str, shown: dict[str, str], rng: random.Random) -> str:
    """The answer, told to the one who asked."""
    said = spoken_number(result)
    about = "about " if said.startswith("about ") else ""
    money = shown["money"].format(said.removeprefix("about "))
    if rng.random() < 0.5:
        slot = "{rm}" if "{rm}" in answer else "{r}"
        short = rng.choice(("That is {x}.", "It is {x}.", "The answer is {x}.", "That makes {x}."))
        answer = short.replace("{x}", slot)
    you = Subject("you", "you", "your", False)
    return filled(answer, rng, shown | {"r": said, "rm": about + money}, you)
