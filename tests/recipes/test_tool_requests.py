"""The made-up conversations: what is asked, called and said belongs together."""

import ast
import datetime
import json
import random
import re
import subprocess
import sys
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import pytest

from trivium.language.tokenizer import Tokenizer
from trivium.llmos.builtin import builtin_tools
from trivium.llmos.calculator import calculate
from trivium.llmos.workspace import Workspace
from trivium.recipes.tool_requests import (
    code,
    files,
    linked,
    other_days,
    other_tools,
    stories,
    sums,
    talk,
    written,
)
from trivium.recipes.tool_requests.dialogues import NAMING, Dialogue, dialogues
from trivium.recipes.tool_requests.patterns import Subject, filled
from trivium.recipes.tool_requests.replay import Reply
from trivium.recipes.tool_requests.rows import Spelling
from trivium.recipes.tool_requests.tables import table
from trivium.recipes.tool_requests.tasks import NUMBERS, Exchange, spoken_number

ROOT = Path(__file__).parents[2]
PLAIN = [
    Reply((), "Hello!", "Hello, how can I help?", True),
    Reply((), "Tell me a story.", "Once upon a time", False),
    Reply((("Hi", "Hello!"),), "Thanks", "You are welcome.", True),
]
MAKERS: dict[str, Callable[[random.Random], list[Exchange]]] = {
    "story": lambda rng: [stories.story(rng)],
    "sum": lambda rng: [sums.plain_sum(rng)],
    "sum in Chinese": lambda rng: [sums.plain_sum(rng, chinese=True)],
    "story in Chinese": lambda rng: [sums.chinese_story(rng)],
    "python": lambda rng: [code.python_task(rng)],
    "terminal": lambda rng: [code.terminal_task(rng)],
    "read": lambda rng: [files.read_task(rng)],
    "list": lambda rng: [files.list_task(rng)],
    "search": lambda rng: [files.search_task(rng)],
    "write": lambda rng: [files.write_task(rng)],
    "other tools": lambda rng: [other_tools.other_task(rng)],
    "linked": linked.linked,
}


@pytest.mark.parametrize("maker", MAKERS.values(), ids=MAKERS)
def test_nothing_is_left_of_the_patterns(maker: Callable[..., list[Exchange]]) -> None:
    rng = random.Random(3)
    for _ in range(150):
        for exchange in maker(rng):
            assert exchange.request and exchange.answer
            for text in (exchange.request, exchange.answer):
                assert not re.search(r"\{[a-z]\w*\}|<\w*/\w*>|  ", text), text
            assert not re.search(r"\[[^\]]*\|", exchange.request) or "|" in json.dumps(
                [dict(step.arguments) for step in exchange.steps]
            )


@pytest.mark.parametrize("name", [*stories.TABLES])
def test_every_row_of_the_stories_can_be_told(name: str) -> None:
    for row in table(name):
        assert len(row) == 4, row
        rng = random.Random(1)
        shown, digits = stories._drawn(row[0], row[2], rng)
        expression = stories._with_digits(row[2], digits)
        assert re.fullmatch(r"[\d.+*/^%of() -]+|floor\(.*\)|pi .*", expression), expression
        calculate.function(expression)


def test_sums_are_right_and_their_numbers_are_those_of_the_request() -> None:
    rng = random.Random(5)
    for _ in range(300):
        exchange = stories.story(rng)
        (step,) = exchange.steps
        assert calculate.function(step.arguments["expression"]) == step.result
        said = spoken_number(step.result)
        assert said.removeprefix("about ") in exchange.answer.replace(",", "")
        assert ("about" in exchange.answer) == said.startswith("about ")
        asked = exchange.request.replace(",", "")
        missing = [
            number
            for number in re.findall(r"\d+\.\d+", str(step.arguments["expression"]))
            if number not in asked and not any(number in c for c in stories.CONVERSIONS)
        ]
        assert missing in ([], ["1.5"]), (exchange.request, step)


@pytest.mark.parametrize("maker", ["read", "list", "search", "write"])
def test_names_and_texts_are_copied_as_they_are(maker: str) -> None:
    rng = random.Random(7)
    for _ in range(200):
        (exchange,) = MAKERS[maker](rng)
        for step in exchange.steps:
            for value in step.arguments.values():
                assert all(part in exchange.request for part in str(value).rsplit("/", 1))


def test_python_code_is_run() -> None:
    rng = random.Random(2)
    for _ in range(100):
        (step,) = code.python_task(rng).steps
        assert code._run(str(step.arguments["code"])) == step.result


def test_written_requests_have_calls_that_a_tool_takes() -> None:
    known = {tool.name: tool for tool in builtin_tools(Workspace.__new__(Workspace))}
    schemas = {n: t.to_json() for n, t in known.items()} | other_tools.schemas()
    rows = [*written.requests(False), *written.requests(True)]
    rows += [
        (first, tool, json.loads(given))
        for row in (*written._follow_ups(False), *written._follow_ups(True))
        for first, tool, given in ((row[0], row[1], row[2]), (row[5], row[6], row[7]))
        if tool != written.NONE
    ]
    for text, tool, arguments in rows:
        parameters = schemas[tool]["function"]["parameters"]
        assert set(parameters["required"]) <= arguments.keys() <= parameters["properties"].keys()
        assert all(isinstance(value, str) for value in arguments.values()), text
        if tool == "calculate":
            calculate.function(arguments["expression"])
        if tool == "python":
            ast.parse(arguments["code"])


def test_written_sums_stay_sensible_with_other_numbers() -> None:
    """Every number of the sum stands in the request, or in the sum as it was written."""
    rng = random.Random(4)
    changed = 0
    for found in written.problems(False):
        exchange = written._asked(found, rng)
        expression = str(exchange.steps[0].arguments["expression"])
        value = calculate.function(expression)
        assert not value.startswith("-") and value != "0", exchange
        asked = exchange.request.replace(",", "").lower()
        told = {n.rstrip(".") for n in re.findall(r"\d[\d.]*", asked)}
        words = {str(n) for n, word in enumerate(NUMBERS) if word in asked}
        before = {*re.findall(r"\d+\.?\d*", found.expression)}
        assert {*re.findall(r"(?<![\w.])\d+\.?\d*", expression)} <= told | words | before
        changed += expression != found.expression
    assert changed > 0.6 * len(written.problems(False))


def test_named_steps_become_one_expression() -> None:
    for found in (*written.problems(False), *written.problems(True)):
        steps = calculate.function(found.steps).partition(" ")[0]
        assert calculate.function(found.expression).partition(" ")[0] == steps, found
    assert written._in_one("a = 5 - 2; b = 3 / a; c = 2 * b - a") == "2 * 3 / (5 - 2) - (5 - 2)"
    assert written._in_one("a = 62 - 50%; b = 62 + a") == "62 + (62 - 50%)"


DAYS = "import datetime; print((datetime.date(2024, 3, 1) - datetime.date(2024, 2, 28)).days)"


@pytest.mark.parametrize(
    "request_, code",
    [
        ("Days from 28 February 2024 to 1 March 2024?", DAYS),
        ("2024-02-28, 2024-03-01: how many days?", DAYS),
        ("How many days are there between Feb 28th, 2024 and March 1st 2024?", DAYS),
        ("28.02.2024 bis 01.03.2024", DAYS),
        ("2024年2月28日到2024年3月1日有多少天？", DAYS),
    ],
)
def test_all_days_of_a_request_move_together(request_: str, code: str) -> None:
    """Whatever the spelling, the code has the days that are said, as far apart as they were."""
    seen = set()
    for seed in range(40):
        text, moved_code = other_days.moved(request_, code, random.Random(seed))
        (year, *_), _ = days = re.findall(r"date\((\d+), (\d+), (\d+)\)", moved_code)
        apart = datetime.date(*map(int, days[0])) - datetime.date(*map(int, days[1]))
        assert apart.days == 2
        for day in days:
            assert set(map(int, re.findall(r"\d+", text))) >= {int(day[0]), int(day[2])}
        assert text.count(year) >= 1 and len(text) < len(request_) + 20
        seen.add(text)
    assert len(seen) > 20


def test_spellings_of_days_are_kept() -> None:
    class Later(random.Random):
        def random(self) -> float:
            return 0.5

        def randint(self, low: int, high: int) -> int:
            return 70

    def other(text: str, day: tuple[int, int, int]) -> str:
        code = f"import datetime; print(datetime.date{day})"
        found, new = other_days.moved(text, code, Later())
        assert str(datetime.date(*day) + datetime.timedelta(days=70)).split("-")[0] in new
        return found

    assert other("on 24 December 2024?", (2024, 12, 24)) == "on 4 March 2025?"
    assert other("on dec 23rd 2024?", (2024, 12, 23)) == "on mar 3rd 2025?"
    assert other("DUE 24.12.2024", (2024, 12, 24)) == "DUE 4.3.2025"
    assert other("due 24.01.2024", (2024, 1, 24)) == "due 03.04.2024"
    assert other("2024-12-24", (2024, 12, 24)) == "2025-03-04"
    assert other("Sunday, 22 Dec 2024", (2024, 12, 22)) == "Sunday, 2 Mar 2025"


@pytest.mark.parametrize(
    "request_, code",
    [
        (
            "Days until 24 December 2026?",
            "print(datetime.date(2026, 12, 24) - datetime.date.today())",
        ),
        ("Days to Christmas 2024 from 1 May 2024?", DAYS),
        ("How often is 3 among 3, 5, 3?", "print([3, 5, 3].count(3))"),
        ("From 9:10 am to 11:30", "print(datetime.datetime(2024, 1, 1, 11, 30))"),
        ("a day of one week", "print(datetime.timedelta(days=1))"),
    ],
)
def test_what_does_not_stand_in_both_stays(request_: str, code: str) -> None:
    for seed in range(20):
        assert other_days.moved(request_, code, random.Random(seed)) == (request_, code)


def test_times_lengths_and_lists_are_drawn_anew() -> None:
    clock = "print(datetime.datetime(2024, 1, 1, 13, 5) - datetime.datetime(2024, 1, 1, 9, 45))"
    later = "print(datetime.date.today() + datetime.timedelta(days=45))"
    for seed in range(60):
        rng = random.Random(seed)
        text, code = other_days.moved("From 09:45 to 13:05", clock, rng)
        start, end = re.findall(r"(\d\d?):(\d\d)", text)
        hours = [tuple(map(int, found)) for found in re.findall(r"1, 1, (\d+), (\d+)\)", code)]
        assert hours == [tuple(map(int, end)), tuple(map(int, start))]
        assert 60 * (hours[0][0] - hours[1][0]) + hours[0][1] - hours[1][1] == 200
        for asked in ("What is the date in 45 days?", "45天后是哪天？", "a 45-day wait ends when"):
            text, code = other_days.moved(asked, later, rng)
            assert re.findall(r"\d+", text) == re.findall(r"\d+", code)
        text, code = other_days.moved("Median of 4, 9, 4 and 17?", "print(m([4, 9, 4, 17]))", rng)
        numbers = re.findall(r"\d+", text)
        assert numbers == re.findall(r"\d+", code) and numbers[0] == numbers[2]


def test_other_numbers_are_drawn_anew_in_request_and_code() -> None:
    prime, choose = "print(all(91 % d for d in range(2, 91)))", "print(math.comb(40, 15))"
    seen = set()
    for seed in range(60):
        rng = random.Random(seed)
        text, code = other_days.moved("Is 91 a prime?", prime, rng)
        (number,) = re.findall(r"\d+", text)
        assert code == prime.replace("91", number)
        seen.add(number)
        text, code = other_days.moved("Choose 15 of 40 books", choose, rng)
        fewer, more = map(int, re.findall(r"\d+", text))
        assert code == f"print(math.comb({more}, {fewer}))" and 10 < fewer < more
    assert len(seen) > 20


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("Sum of 1 to 99, without 12?", "print(sum(range(1, 100)) - 12 + 99 - 99)"),  # 99 and 100
        ("Is '15' in '15 men'?", "print('15' in '15 men')"),
        ("The 12th of 30 days of May?", "print(30 - 12)"),
        ("Last digit of 7^22?", "print(7 ** 22 % 10)"),
        ("3.14 times 2.50", "print(3.14 * 2.50)"),
        ("Of 20 and 20, which?", "print(max(20, 20))"),
        ("Dice of 8 sides", "print(random.randint(1, 8))"),
    ],
)
def test_numbers_stay_where_it_is_not_plain_what_they_are(text: str, code: str) -> None:
    for seed in range(40):
        found, new = other_days.moved(text, code, random.Random(seed))
        if "99" in text:
            assert "1 to 99" in found and "range(1, 100)" in new
        elif "22" in text:
            assert re.findall(r"\d+", new)[1] in found and new.endswith("% 10)")
        else:
            assert (found, new) == (text, code)


def some(count: int, seed: int = 0) -> list[Dialogue]:
    return list(islice(dialogues(seed, PLAIN), count))


def test_only_tools_on_the_list_are_called() -> None:
    called = set()
    for dialogue in some(1000):
        offered = {tool["function"]["name"] for tool in dialogue.tools}
        for message in dialogue.messages:
            for call in message.get("tool_calls", ()):
                assert call["function"]["name"] in offered
                called.add(call["function"]["name"])
    ours = {"calculate", "python", "terminal", "read_file", "write_file"}
    assert called > ours | {"list_files", "search_files"} | other_tools.OURS_NEXT


def test_named_steps_give_what_the_call_gives() -> None:
    """They stand under a system message of their own, never beside tools or among those held
    back."""
    found = [d for d in some(600) if d.messages[0]["content"] == NAMING]
    assert 60 < len(found) < 180
    for dialogue in found:
        system, user, answer = dialogue.messages
        assert not dialogue.tools and dialogue.whole
        assert calculate.function(answer["content"]).strip()
        assert (system["role"], user["role"], answer["role"]) == ("system", "user", "assistant")
    held = islice(dialogues(0, PLAIN, held=True), 300)
    assert not any(d.messages[0]["content"] == NAMING for d in held)


def test_a_seed_is_a_set_of_conversations() -> None:
    """In another process too, where sets have another order."""
    program = (
        "import json, sys; from tests.recipes.test_tool_requests import some; "
        "print(json.dumps([d.messages for d in some(40)]))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert json.loads(ran.stdout) == [d.messages for d in some(40)]
    assert some(3, seed=1) != some(3)


# -- tokens ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    texts = [json.dumps(d.messages, ensure_ascii=False) for d in some(30)]
    return Tokenizer.train(texts, 700)


@pytest.fixture(scope="module")
def spelling(tokenizer: Tokenizer) -> Spelling:
    return Spelling(tokenizer, PLAIN)


def test_what_the_assistant_says_is_learnt(spelling: Spelling, tokenizer: Tokenizer) -> None:
    for dialogue in some(60):
        ids, marks = spelling(dialogue.messages, dialogue.tools)
        learnt = [token for token, mark in zip(ids, marks, strict=True) if mark]
        said = []
        for message in dialogue.messages:
            if message["role"] == "assistant" and message.get("weight", 1):
                calls = [c["function"] for c in message.get("tool_calls", ())]
                said += [
                    f'<tool_call>\n{{"name": "{c["name"]}", "arguments": {c["arguments"]}}}\n'
                    "</tool_call>"
                    for c in calls
                ] or [message["content"]]
        whole = "".join(f"{text}<|im_end|>" for text in said)
        expected = whole if dialogue.whole else whole.removesuffix("<|im_end|>")
        assert tokenizer.decode(learnt, skip_special=False) == expected


def test_subjects_have_their_verbs() -> None:
    text = "{Who} <buy/buys> it, since {they} <like/likes> {their} [cat|cat]."
    she = Subject("my aunt", "she", "her", True)
    told = filled(text, random.Random(0), {}, she)
    assert told == "My aunt buys it, since she likes her cat."


def test_talk_needs_no_tool() -> None:
    rng = random.Random(0)
    texts = {talk.talk(rng) for _ in range(300)} | {talk.follow_up(rng) for _ in range(60)}
    assert len(texts) > 250
    assert not any(re.search(r"[{}\[\]|]", text) for text in texts)
