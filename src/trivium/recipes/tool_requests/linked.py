"""Requests that hang together: follow-ups on what was said, and several calls for one request."""

import random
import re
from collections.abc import Callable

from trivium.llmos.calculator import calculate
from trivium.recipes.tool_requests import files
from trivium.recipes.tool_requests.files import listing, name_of_file, path_of
from trivium.recipes.tool_requests.linked_files import (
    ORDINALS,
    find_and_open,
    lines_of,
    list_and_open,
    read_and_ask,
    read_and_compute,
    wrong_name,
)
from trivium.recipes.tool_requests.other_tools import DRAWS
from trivium.recipes.tool_requests.patterns import filled, is_chinese
from trivium.recipes.tool_requests.stories import story
from trivium.recipes.tool_requests.sums import plain_sum
from trivium.recipes.tool_requests.tables import sentences, table, words
from trivium.recipes.tool_requests.tasks import Exchange, Step, number_word, spoken_number


def _computed(form: str, values: dict[str, str]) -> Step:
    expression = re.sub(r"\b[a-z]\b(?!\w)", lambda m: values.get(m[0], m[0]), form)
    return Step("calculate", {"expression": expression}, str(calculate.function(expression)))


def sum_and_more(rng: random.Random) -> list[Exchange]:
    """A sum, then something of its result."""
    while True:
        first = plain_sum(rng, rng.random() < 0.1) if rng.random() < 0.5 else story(rng)
        result = first.steps[0].result
        if re.fullmatch(r"\d{1,7}(\.\d{1,4})?", result):
            break
    chinese = is_chinese(first.request)
    rows = [row for row in table("follow_up_sums") if is_chinese(row[0]) == chinese] or list(
        table("follow_up_sums")
    )
    pattern, form = rng.choice(rows)
    values = {
        "r": result,
        "k": str(rng.randint(2, 12)),
        "n": str(rng.randint(2, 300)),
        "p": str(rng.choice((5, 10, 15, 19, 20, 25, 50))),
    }
    step = _computed(form, values)
    said = spoken_number(step.result)
    answer = (
        f"是{said.replace('about ', '约')}。"
        if chinese
        else rng.choice((f"That is {said}.", f"{said}.", f"It is {said}."))
    )
    return [first, Exchange(filled(pattern, rng, values), (step,), answer)]


def sum_and_save(rng: random.Random) -> list[Exchange]:
    """The result of a sum goes into a file: in a second request, or in one with two calls."""
    first, path = plain_sum(rng), path_of(rng)
    result = spoken_number(first.steps[0].result).removeprefix("about ")
    write = Step("write_file", {"path": path, "text": result}, f"wrote {path} ({len(result)} B)")
    if rng.random() < 0.5:
        request = filled(
            "[Save|Write|Put] [that|the result|it] [in|to|into] {path}[.|]", rng, {"path": path}
        )
        return [first, Exchange(request, (write,), f"{result} is saved in {path}.")]
    then = "and [save|write|put] the [result|answer] [in|to|into] {path}[.|]"
    request = f"{first.request.rstrip('?. ')} {filled(then, rng, {'path': path})}"
    return [
        Exchange(
            request,
            (*first.steps, write),
            f"{first.answer.rstrip('.')}, and it is saved in {path}.",
        )
    ]


def two_sums(rng: random.Random) -> list[Exchange]:
    """Two questions in one request."""
    one, two = plain_sum(rng), plain_sum(rng)
    between = rng.choice((" And ", " Also: ", " And then: "))
    request = one.request.rstrip("?. ") + "?" + between + two.request[:1].lower() + two.request[1:]
    results = [spoken_number(step.result) for step in (*one.steps, *two.steps)]
    first, second = (str(step.arguments["expression"]) for step in (*one.steps, *two.steps))
    return [
        Exchange(
            request,
            (*one.steps, *two.steps),
            f"{first} is {results[0]}, and {second} is {results[1]}.",
        )
    ]


def same_again(rng: random.Random) -> list[Exchange]:
    """`And what about b.txt?` after a.txt; likewise for folders and searches."""
    if rng.random() < 0.3:
        folder = rng.choice(("", rng.choice(words("folders"))))
        there, found = {"path": folder} if folder else {}, [path_of(rng), path_of(rng)]
        sought = [files.searched(rng, "word"), files.searched(rng, "word")]
        ways = sentences("files_search_in" if folder else "files_search")
        pattern = rng.choice([text for text in ways if not is_chinese(text)])
        first = filled(pattern, rng, {"what": sought[0], "folder": folder})
        again = filled("[And|and|What about|Now|now look for] {x}[?|]", rng, {"x": sought[1]})
        where = f"{folder}/" if folder else ""
        return [
            Exchange(
                request,
                (Step("search_files", {"pattern": what} | there, f"{where}{path}:3: {what}"),),
                f"{what} is in {where}{path}.",
            )
            for request, what, path in zip((first, again), sought, found, strict=True)
        ]
    if rng.random() < 0.5:
        paths = (path_of(rng), path_of(rng))
        lines = lines_of(rng, 2)
        steps = [Step("read_file", {"path": p}, line) for p, line in zip(paths, lines, strict=True)]
        request = filled(rng.choice(sentences("files_read")[:6]), rng, {"path": paths[0]})
        answers = [f"{p} says: {line}" for p, line in zip(paths, lines, strict=True)]
    else:
        folders = rng.sample(words("folders"), 2)
        names = [[name_of_file(rng)] for _ in folders]
        steps = [
            Step("list_files", {"path": f}, listing(rng, f, n))
            for f, n in zip(folders, names, strict=True)
        ]
        request = filled(
            rng.choice(sentences("files_list")[:5]), rng, {"folder": folders[0], "name": ""}
        )
        answers = [f"There is one file: {n[0]}." for n in names]
    other = str(steps[1].arguments["path"])
    again = filled("[And|and|What about|And what about|and in] {x}?", rng, {"x": other})
    return [Exchange(request, (steps[0],), answers[0]), Exchange(again, (steps[1],), answers[1])]


def picture_and_more(rng: random.Random) -> list[Exchange]:
    """Draw, then change or cut out: in one request or two."""
    scene, change, thing = (DRAWS[name](rng) for name in ("scene", "change", "object"))
    path, second = f"picture-{rng.randint(1, 99)}.png", f"edited-{rng.randint(1, 99)}.png"
    draw = Step("draw_picture", {"prompt": scene}, path)
    if rng.random() < 0.5:
        then, after = (
            Step("edit_picture", {"path": path, "instruction": change}, second),
            f"The changed picture is {second}.",
        )
        asked = filled("[Now |Please |And |Then |]{change}[.|]", rng, {"change": change})
    else:
        second = f"cutout-{rng.randint(1, 99)}.png"
        then, after = (
            Step("cut_out", {"path": path, "what": thing}, second),
            f"The {thing} is in {second}.",
        )
        asked = filled(
            "[Cut out the {thing}|Now cut the {thing} out|I only need the {thing}, cut it out][.|]",
            rng,
            {"thing": thing},
        )
    request = "[Draw|Make a picture of|Paint|Create an image of|Sketch|I want a picture of] {scene}"
    request = filled(request, rng, {"scene": scene})
    if rng.random() < 0.4:
        asked = re.sub("^(Now|Then|And) ", "", asked)
        return [Exchange(f"{request}, then {asked[:1].lower()}{asked[1:]}", (draw, then), after)]
    return [
        Exchange(f"{request}.", (draw,), f"Here is your picture: {path}"),
        Exchange(asked[:1].upper() + asked[1:], (then,), after),
    ]


def known_before(rng: random.Random) -> list[Exchange]:
    """Something was said in plain words, and is needed now."""
    told = rng.choice((listed_before, named_before, numbers_before, picture_before))
    return told(rng)


def _remark(request: str, answer: str) -> Exchange:
    return Exchange(request, (), answer, learnt=False)


def listed_before(rng: random.Random) -> list[Exchange]:
    names = [name_of_file(rng) for _ in range(rng.randint(2, 4))]
    place = rng.randrange(len(names))
    numbered = ", ".join(f"{i}. {name}" for i, name in enumerate(names, start=1))
    before = _remark(
        "which documents are in this folder?", f"There are {number_word(len(names))}: {numbered}"
    )
    line = lines_of(rng, 1)[0]
    request = filled(
        "[ok |Please |][show me|open|read] "
        "[the {ordinal} one|number {n}|the {ordinal}][.|, please|]",
        rng,
        {"ordinal": ORDINALS[place], "n": str(place + 1)},
    )
    step = Step("read_file", {"path": names[place]}, line)
    return [before, Exchange(request, (step,), f"{names[place]} says: {line}")]


def named_before(rng: random.Random) -> list[Exchange]:
    path = path_of(rng)
    told = filled(
        "[I saved my text as|My file is called|The draft is in] {path}.", rng, {"path": path}
    )
    before = _remark(told, rng.choice(("Good to know.", "OK.", "Great!")))
    line = lines_of(rng, 1)[0]
    request = filled(
        "[Open it|What does it say?|Read it[ to me|]|Can you show it to me?|Summarise it][.|]",
        rng,
        {},
    )
    step = Step("read_file", {"path": path}, line)
    return [before, Exchange(request, (step,), f"It says: {line}")]


def picture_before(rng: random.Random) -> list[Exchange]:
    picture = DRAWS["picture"](rng)
    told = "[My photo is|I uploaded|Here is a picture:|The picture is called] {picture}[.|]"
    before = _remark(
        filled(told, rng, {"picture": picture}),
        rng.choice(("Good to know.", "OK.", "What shall I do with it?")),
    )
    if rng.random() < 0.5:
        what, made = DRAWS["change"](rng), f"edited-{rng.randint(1, 99)}.png"
        request = "[Please |Now |Can you |]{x}[.|]"
        step = Step("edit_picture", {"path": picture, "instruction": what}, made)
        said = f"The changed picture is {made}."
    else:
        what, made = DRAWS["object"](rng), f"cutout-{rng.randint(1, 99)}.png"
        request = "[Cut out the {x}|cut the {x} out|I only need the {x}, cut it out][.|, please|]"
        step = Step("cut_out", {"path": picture, "what": what}, made)
        said = f"The {what} is in {made}."
    return [before, Exchange(filled(request, rng, {"x": what}), (step,), said)]


def numbers_before(rng: random.Random) -> list[Exchange]:
    a, b = sorted((rng.randint(5, 300), rng.randint(20, 900)), reverse=True)
    told = filled(
        "[My rent is {a} and the phone {b}.|I had {a} euros and spent {b}.|"
        "We have {a} seats and {b} guests.]",
        rng,
        {"a": str(a), "b": str(b)},
    )
    before = _remark(told, rng.choice(("I see.", "Thank you for telling me.", "OK.")))
    sign = "+" if "rent" in told else "-"
    request = {
        "+": "[How much is that together?|What is the sum?|Add them up.]",
        "-": "[How much is left?|What is the difference?|How many are left?]",
    }[sign]
    expression = f"{a} {sign} {b}"
    result = str(calculate.function(expression))
    step = Step("calculate", {"expression": expression}, result)
    return [before, Exchange(filled(request, rng, {}), (step,), f"That is {result}.")]


LINKED: tuple[tuple[int, Callable[[random.Random], list[Exchange]]], ...] = (
    (7, sum_and_more),
    (3, sum_and_save),
    (3, two_sums),
    (5, list_and_open),
    (3, find_and_open),
    (3, read_and_compute),
    (2, wrong_name),
    (3, read_and_ask),
    (3, same_again),
    (2, picture_and_more),
    (4, known_before),
)


def linked(rng: random.Random) -> list[Exchange]:
    """One or two requests, of which the second needs the first."""
    weights, makers = zip(*LINKED, strict=True)
    maker: Callable[[random.Random], list[Exchange]] = rng.choices(makers, weights)[0]
    return maker(rng)
