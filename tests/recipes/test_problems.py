"""Word problems of a file: the expression is the one of the steps, whatever the numbers."""

import json
import random
import re
from pathlib import Path

import pytest

from trivium.errors import NotFound, UsageError
from trivium.llmos.calculator import calculate
from trivium.recipes.tool_requests.problems import Problem, problem, read_problems

PENS = "Mia buys 3 pens for $4 each. She pays with ${note}. How much does she get back?"
GOOD = [  # question, answer, the expression
    (PENS.format(note="20"), "3*4=$<<3*4=12>>12, 20-12=<<20-12=8>>8\n#### 8", "20 - 3 * 4"),
    (
        "Tom has twelve eggs, and twice as many nuts. How many in all?",
        "<<12*2=24>>24 nuts, <<12+24=36>>36\n#### 36",
        "12 + 12 * 2",
    ),
    (
        "A coat of $1,200 is 25% off. What does it cost?",
        "off: <<1200*.25=300>>300, <<1200-300=900>>900\n#### 900",
        "1200 - 1200 * 0.25",
    ),
    (
        "Two friends share 7 and 8 cakes. How many has each?",
        "<<7+8=15>>15, <<15/2=7.5>>7.5\n#### 7.5",
        "(7 + 8) / 2",
    ),
]
BAD = [
    ("Mia buys 3 pens for $4 each. The sum?", "no marks\n#### 12"),
    ("Mia buys 3 pens for $4 each. The sum?", "<<3*4=13>>13\n#### 13"),
    ("Mia buys 3 pens for $4 each. The sum?", "<<3*4=12>>12\n#### 15"),
    ("Mia buys 3 pens for $4 each. The sum?", "<<__import__('os')=12>>12\n#### 12"),
    ("Mia buys 3 pens for $4 each. The sum?", "<<3*4*1.17=14.04>>14.04\n#### 14.04"),
    ("Mia has 12 pens, and 3 boxes of 4 more. All?", "<<3*4=12>>12, <<12+12=24>>24\n#### 24"),
    ("From 8:00 to 11:00, and 2 hours more. How long?", "<<11-8=3>>3, <<3+2=5>>5\n#### 5"),
    ("Mia has 3 pens and loses 3. How many?", "<<3-3=0>>0\n#### 0"),
    ("Add 1, 2, 3, 4, 5 and 6.", "<<1+2+3+4+5+6=21>>21\n#### 21"),
    ("Divide 4 by nothing.", "<<4/0=0>>0\n#### 0"),
]


def write(path: Path, rows: list[tuple[str, ...]]) -> Path:
    lines = [json.dumps({"question": question, "answer": answer}) for question, answer, *_ in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def told(found: Problem, seed: int) -> tuple[str, str, str]:
    exchange = problem(random.Random(seed), [found])
    (step,) = exchange.steps
    return exchange.request, step.arguments["expression"], step.result


@pytest.mark.parametrize("row", GOOD, ids=lambda row: row[2])
def test_the_steps_are_put_into_each_other(row: tuple[str, ...], tmp_path: Path) -> None:
    (found,) = read_problems(write(tmp_path / "x.jsonl", [row]))
    shape = re.sub(r"[\d.]+", "n", row[2])
    different = set()
    for seed in range(40):
        request, expression, result = told(found, seed)
        assert re.sub(r"[\d.]+", "n", expression) == shape
        assert calculate.function(expression) == result and not result.startswith("-")
        assert "…" not in result or "/" in expression
        different.add(request.lower())
    assert len(different) > 10


def test_the_numbers_of_the_request_are_those_of_the_expression(tmp_path: Path) -> None:
    (found,) = read_problems(write(tmp_path / "x.jsonl", GOOD[:1]))
    for seed in range(60):
        request, expression, result = told(found, seed)
        assert sorted(re.findall(r"\d+", request)) == sorted(re.findall(r"\d+", expression))
        assert int(result) > 0  # nobody gets back less than nothing


@pytest.mark.parametrize("row", BAD, ids=lambda row: row[1][:20])
def test_what_no_single_expression_solves_is_left_out(row: tuple[str, ...], tmp_path: Path) -> None:
    assert len(read_problems(write(tmp_path / "x.jsonl", [row, GOOD[0]]))) == 1
    with pytest.raises(UsageError, match="no word problems: it takes lines of JSON"):
        read_problems(write(tmp_path / "x.jsonl", [row]))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        read_problems(tmp_path / "absent.jsonl")
    (tmp_path / "x.jsonl").write_text("{}\n{\n")
    with pytest.raises(UsageError, match=r"x\.jsonl.*2"):
        read_problems(tmp_path / "x.jsonl")
