"""Requests about files that hang together: what is listed or found is read, and computed with."""

import random

from trivium.llmos.calculator import calculate
from trivium.recipes.tool_requests import files
from trivium.recipes.tool_requests.files import listing, name_of_file, path_of
from trivium.recipes.tool_requests.patterns import careless, filled, is_chinese
from trivium.recipes.tool_requests.tables import sentences, table, words
from trivium.recipes.tool_requests.tasks import Exchange, Step, number_word, spoken_number

ORDINALS = ("first", "second", "third", "fourth", "fifth")


def lines_of(rng: random.Random, count: int) -> list[str]:
    return files.contents(rng, files.values(rng), count)


def list_and_open(rng: random.Random) -> list[Exchange]:
    """What files are there, then one of them by its place: in two requests or one."""
    folder = rng.choice((".", rng.choice(words("folders"))))
    names = sorted({name_of_file(rng) for _ in range(rng.randint(2, 5))})
    text, arguments = listing(rng, folder, names), {} if folder == "." else {"path": folder}
    place = rng.randrange(len(names))
    name = names[place]
    path = name if folder == "." else f"{folder}/{name}"
    line = lines_of(rng, 1)[0]
    read = Step("read_file", {"path": path}, line)
    look = Step("list_files", arguments, text)
    slots = {
        "folder": folder,
        "ordinal": rng.choice(
            (ORDINALS[place], "last" if place == len(names) - 1 else ORDINALS[place])
        ),
        "name": name.partition(".")[0],
    }
    if rng.random() < 0.6:
        pattern = rng.choice(
            sentences("files_list_all")[:6] if folder == "." else sentences("files_list")[:5]
        )
        asked = filled(careless(pattern, rng), rng, slots | {"name": name})
        said = (
            f"There are {number_word(len(names))} files: {', '.join(names[:-1])} and {names[-1]}."
        )
        said = f"Yes, {name} is there." if "a file called" in asked else said
        if "Yes" in said:
            slots["ordinal"] = slots["name"]
        pattern = (
            "[open|Open|show me|Read|what does|ok, read] the {ordinal} one[ say|]"
            if "Yes" not in said
            else "[Open it|What does it say?|read it|show it to me]"
        )
        return [
            Exchange(asked, (look,), said),
            Exchange(filled(pattern, rng, slots), (read,), f"{path} says: {line}"),
        ]
    where = "here" if folder == "." else f"in {folder}"
    pattern = (
        "[List|Look at|Look which files are] [the files |what is |]{where} "
        "and [open|read|show me] the {ordinal} one[.|]"
    )
    return [
        Exchange(
            filled(pattern, rng, slots | {"where": where}),
            (look, read),
            f"The {slots['ordinal']} file is {name}. It says: {line}",
        )
    ]


def find_and_open(rng: random.Random) -> list[Exchange]:
    """Search for something and read the file that has it."""
    what, path, line = files.searched(rng), path_of(rng), lines_of(rng, 1)[0]
    text = f"{line} {what}"
    search = Step("search_files", {"pattern": what}, f"{path}:1: {text}")
    read = Step("read_file", {"path": path}, text)
    if rng.random() < 0.5:
        request = filled(
            "[Find|Search for|Look for|Locate] the file [that mentions|with|about|containing] "
            "{what} and [read it to me|show it|open it|tell me what it says|print it][.|]",
            rng,
            {"what": what},
        )
        return [Exchange(request, (search, read), f"{path} says: {text}")]
    ways = [text for text in sentences("files_search") if not is_chinese(text)]
    request = filled(rng.choice(ways), rng, {"what": what})
    asked = filled(
        "[Open it|Show me that file|read it|What else does it say?|Read the whole file][.|]",
        rng,
        {},
    )
    return [
        Exchange(request, (search,), f"{what} is in {path}."),
        Exchange(asked, (read,), f"{path} says: {text}"),
    ]


def read_and_compute(rng: random.Random) -> list[Exchange]:
    """Numbers from a file."""
    path = path_of(rng)
    numbers = [
        str(rng.choice((rng.randint(2, 900), round(rng.uniform(1, 90), 2))))
        for _ in range(rng.randint(2, 5))
    ]
    labels = rng.sample(words("foods"), len(numbers))
    text = "\n".join(
        rng.choice((f"{label}: {n}",)) for label, n in zip(labels, numbers, strict=True)
    )
    form, pattern = rng.choice(
        (
            (
                "sum",
                "[Add up the numbers|What is the sum of the numbers|What do they cost together? "
                "The prices are|What is the total of the prices] in {path}[?|.]",
            ),
            ("mean", "What is the average of the numbers in {path}?"),
            ("max", "What is the largest number in {path}?"),
        )
    )
    expression = " + ".join(numbers)
    expression = {
        "sum": expression,
        "mean": f"({expression}) / {len(numbers)}",
        "max": f"max({', '.join(numbers)})",
    }[form]
    step = Step("calculate", {"expression": expression}, str(calculate.function(expression)))
    said = {"sum": "The sum is", "mean": "The average is", "max": "The largest is"}[form]
    return [
        Exchange(
            filled(pattern, rng, {"path": path}),
            (Step("read_file", {"path": path}, text), step),
            f"{said} {spoken_number(step.result)}.",
        )
    ]


def wrong_name(rng: random.Random) -> list[Exchange]:
    """A file of nearly that name is there: it is tried again."""
    path = path_of(rng)
    folder, slash, name = path.rpartition("/")
    stem, _, ending = name.rpartition(".")
    wrong = (
        folder
        + slash
        + rng.choice(
            (
                stem[:-1] + "." + ending,
                stem + "s." + ending,
                stem,
                stem + "." + rng.choice(("txt", "md", "doc")),
            )
        )
    )
    if wrong == path:
        return wrong_name(rng)
    line = lines_of(rng, 1)[0]
    error = f"error: there is no {wrong} in the workspace; is it {path}?"
    steps = (Step("read_file", {"path": wrong}, error), Step("read_file", {"path": path}, line))
    request = filled(rng.choice(sentences("files_read")[:6]), rng, {"path": wrong})
    return [Exchange(request, steps, f"There is no {wrong}, but {path} says: {line}")]


def read_and_ask(rng: random.Random) -> list[Exchange]:
    """A file, then a question about what it said: no call is needed."""
    path, known = path_of(rng), files.values(rng)
    line, question, answer = rng.choice(table("facts"))
    lines = [*lines_of(rng, rng.randint(0, 2)), filled(line, rng, known)]
    rng.shuffle(lines)
    read = Step("read_file", {"path": path}, "\n".join(lines))
    question = filled(question, rng, known)
    said = " ".join(text if text[-1] in ".!?" else f"{text}." for text in lines)
    request = filled(rng.choice(sentences("files_read")[:6]), rng, {"path": path})
    return [
        Exchange(request, (read,), f"It says: {said}"),
        Exchange(f"{question[:1].upper()}{question[1:]}?", (), filled(answer, rng, known)),
    ]
