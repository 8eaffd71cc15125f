"""Requests about files: read, list, search, write. The files and what is in them are made up."""

import random

from trivium.recipes.tool_requests.patterns import careless, filled, is_chinese, polite
from trivium.recipes.tool_requests.tables import sentences, table, words
from trivium.recipes.tool_requests.tasks import Exchange, Step, number_word

NOT_APPROVED = "error: write_file was not run: it changes files, and no person approved the call"


def name_of_file(rng: random.Random, chinese: bool = False) -> str:
    stem = rng.choice(words("file_stems_chinese" if chinese else "file_stems"))
    if not chinese and rng.random() < 0.25:
        stem += rng.choice(("_2", "2024", "-final", "_old", "-v2", "_may", "1", "_new", "-copy"))
    elif not chinese and rng.random() < 0.2:
        stem = _made_stem(rng)
    endings = words("file_endings")
    if not chinese and " " not in stem and rng.random() < 0.15:
        endings = words("hidden_endings")
    return f"{stem}.{rng.choice(endings[:5] if chinese or ' ' in stem else endings)}"


def _made_stem(rng: random.Random) -> str:
    """`garden-invoice`, `2023-05 report`, `load_prices`, `Anna budget`."""
    first, second = rng.sample([stem for stem in words("file_stems") if " " not in stem], 2)
    date = f"20{rng.randint(10, 29)}-{rng.randint(1, 12):02d}"
    made = (
        f"{first}{rng.choice('-_ ')}{second}",
        f"{date}{rng.choice('-_ ')}{first}",
        f"{first}{rng.choice('-_ ')}{date}",
        identifier(rng),
        f"{rng.choice(words('names'))} {first}",
        f"{first}_{rng.choice(words('names')).lower()}",
        f"{first} {rng.choice(words('cities'))} {rng.randint(1, 30)}",
        f"{rng.randint(1, 30):02d}-{first}",
        first.capitalize() + second.capitalize(),
    )
    return rng.choice(made)


def identifier(rng: random.Random) -> str:
    """A name as it stands in code."""
    verb, noun = rng.choice(words("identifier_verbs")), rng.choice(words("identifier_nouns"))
    other = rng.choice(words("identifier_nouns"))
    return rng.choice(
        (
            f"{verb}_{noun}",
            f"{verb}_{noun}_{other}",
            f"{verb}{noun.capitalize()}",
            f"{noun}_{other}",
            f"{noun.upper()}_{other.upper()}",
            f"{noun.capitalize()}{other.capitalize()}",
            f"_{verb}_{noun}",
        )
    )


def folder_name(rng: random.Random, chinese: bool = False) -> str:
    return rng.choice(words("folders_chinese" if chinese else "folders"))


def path_of(rng: random.Random, chinese: bool = False) -> str:
    name = name_of_file(rng, chinese)
    if rng.random() < 0.6:
        return name
    folder = folder_name(rng, chinese)
    if not chinese and rng.random() < 0.15:
        folder += f"/{rng.choice(words('folders'))}"
    return f"{folder}/{name}"


def values(rng: random.Random) -> dict[str, str]:
    name, other = rng.sample(words("names"), 2)
    return {
        "name": name,
        "name2": other,
        "city": rng.choice(words("cities")),
        "day": rng.choice(words("days")),
        "word": rng.choice(words("codenames")),
        "place": rng.choice(words("hiding_places")),
        "n": str(rng.randint(10, 29)),
        "m": str(rng.randint(1, 5)),
        "k": str(rng.randint(4, 9)),
    }


def contents(rng: random.Random, known: dict[str, str], count: int) -> list[str]:
    return [
        filled(line, rng, known | values(rng))
        for line in rng.sample(sentences("file_lines"), count)
    ]


def _quoted(lines: list[str]) -> str:
    return " ".join(line if line[-1] in ".!?" else f"{line}." for line in lines)


def read_task(rng: random.Random) -> Exchange:
    """Reading a file: to see it, or for something it says."""
    chinese = rng.random() < 0.12
    path = path_of(rng, chinese)
    if rng.random() < 0.1:
        request = filled(careless(rng.choice(sentences("files_read")), rng), rng, {"path": path})
        error = f"error: there is no {path} in the workspace: list_files shows all"
        said = rng.choice(
            (
                f"There is no file {path}.",
                f"I could not find {path}.",
                f"{path} does not exist here.",
            )
        )
        return Exchange(request, (Step("read_file", {"path": path}, error),), said)
    known = values(rng)
    if not chinese and rng.random() < 0.45:
        line, question, answer = rng.choice(table("facts"))
        lines = contents(rng, known, rng.randint(0, 3))
        lines.insert(rng.randint(0, len(lines)), filled(line, rng, known))
        request = filled(
            careless(rng.choice(sentences("files_ask")), rng),
            rng,
            {"path": path, "q": filled(question, rng, known)},
        )
        said = filled(answer, rng, known)
    else:
        lines = contents(rng, known, rng.choice((1, 1, 2, 2, 3)))
        pattern = rng.choice(sentences("files_read"))
        where = {"path": path}
        if chinese:
            pattern = rng.choice(sentences("files_read_chinese"))
        elif rng.random() < 0.15:
            where = {"name": name_of_file(rng), "folder": folder_name(rng)}
            pattern, path = (
                rng.choice(sentences("files_read_in")),
                f"{where['folder']}/{where['name']}",
            )
        request = filled(careless(pattern, rng), rng, where)
        said = filled(
            rng.choice(("It says: {x}", "{path} says: {x}", "Here is what it says: {x}", "{x}")),
            rng,
            {"x": _quoted(lines), "path": path},
        )
        if rng.random() < 0.07:
            lines, said = ["[the file is empty]"], f"{path} is empty."
    request = request if chinese else polite(request, rng)
    if path not in request and path.rpartition("/")[2] not in request:
        request = request[:1] + filled(rng.choice(sentences("files_read")), rng, {"path": path})[1:]
    return Exchange(request, (Step("read_file", {"path": path}, "\n".join(lines)),), said)


def listing(rng: random.Random, folder: str, names: list[str]) -> str:
    prefix = "" if folder == "." else f"{folder}/"
    sizes = (
        f"{rng.randint(1, 999)} B",
        f"{rng.randint(1, 99)}.{rng.randint(0, 9)} kB",
        f"{rng.randint(1, 9)}.1 MB",
    )
    return "\n".join(f"{prefix}{name} ({rng.choice(sizes)})" for name in sorted(names))


def _series(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def list_task(rng: random.Random) -> Exchange:
    chinese = rng.random() < 0.1
    names = sorted({name_of_file(rng, chinese) for _ in range(rng.randint(1, 5))})
    wanted = rng.choice(names) if rng.random() < 0.5 else name_of_file(rng, chinese)
    if rng.random() < 0.35:
        folder, pattern, arguments = ".", rng.choice(sentences("files_list_all")), {}
    else:
        folder = folder_name(rng, chinese)
        pattern, arguments = rng.choice(sentences("files_list")), {"path": folder}
        if chinese:
            pattern = rng.choice(sentences("files_list_chinese"))
    request = filled(careless(pattern, rng), rng, {"folder": folder, "name": wanted})
    chinese = is_chinese(request)
    if rng.random() < 0.08:
        text, said = (
            "[the folder is empty]",
            "这个文件夹是空的。" if chinese else "The folder is empty.",
        )
    elif folder != "." and rng.random() < 0.06:
        text = f"error: there is no {folder} in the workspace: list_files shows all"
        said = f"There is no folder {folder}."
    else:
        text = listing(rng, folder, names)
        count = "is one file" if len(names) == 1 else f"are {number_word(len(names))} files"
        said = f"There {count}: {_series(names)}."
        if chinese:
            said = f"有{len(names)}个文件：{'、'.join(names)}。"
        elif "{name}" in pattern:
            said = (
                f"Yes, {wanted} is there."
                if wanted in names
                else f"No, {wanted} is not there, but {_series(names)}."
            )
    return Exchange(request, (Step("list_files", arguments, text),), said)


def searched(rng: random.Random, kind: str = "", chinese: bool = False) -> str:
    """What is looked for: a word, a name, a phrase, a number, code, an error message."""
    if chinese and rng.random() < 0.8:
        return rng.choice(words("searched_chinese"))
    if kind == "code":
        name = identifier(rng)
        return rng.choice((name, name, name, name, f"{name}()", f"self.{name}"))
    if kind == "error":
        return rng.choice(words("errors"))
    roll = rng.random()
    if roll < 0.1:
        return f"{rng.choice(words('names'))} {rng.choice(words('family_names'))}"
    if roll < 0.15:
        return rng.choice(words("names"))
    if roll < 0.22:
        digits = (rng.randint(10, 99999), round(rng.uniform(1, 999), 2), rng.randint(1900, 2030))
        return str(rng.choice(digits))
    if roll < 0.27:
        return rng.choice(("#", "INV-", "A", "v", "No. ", "ticket ", "room ")) + str(
            rng.randint(2, 9999)
        )
    if roll < 0.32:
        return rng.choice(("", "", "import ", "def ", "class ", "@")) + identifier(rng)
    if roll < 0.35 and not kind:
        return rng.choice(words("searched_chinese"))
    lists = ("searched", "searched", "phrases_searched", "codes", "errors", "foods", "cities")
    return rng.choice(words(rng.choice(lists)))


def search_task(rng: random.Random) -> Exchange:
    where, kind = rng.choice(("", "", "_in", "_in", "_in", "_file")), ""
    if rng.random() < 0.3 and where != "_file":
        kind = rng.choice(("code", "code", "error"))
        where = "" if kind == "error" else where
    pattern = rng.choice(sentences(f"files_search{kind and '_' + kind}{where}"))
    inside, chinese = where == "_in", is_chinese(pattern)
    what, folder = searched(rng, kind, chinese), folder_name(rng, chinese and rng.random() < 0.5)
    path = path_of(rng)
    quoted = 0.6 if " " in what and kind != "code" else 0.3
    shown = what
    if not chinese and rng.random() < quoted:
        marks = ('"{}"', '"{}"', "'{}'", "`{}`") if "'" not in what else ('"{}"',)
        shown = rng.choice(marks).format(what)
    request = filled(
        careless(pattern.replace("”?", "”").replace("“?", "“"), rng),
        rng,
        {"what": shown, "folder": folder, "path": path},
    )
    arguments = {"pattern": what}
    if where:
        arguments["path"] = folder if inside else path
    prefix = f"{folder}/" if inside else ""
    files = [
        prefix + name
        for name in sorted({name_of_file(rng, chinese) for _ in range(rng.randint(1, 3))})
    ]
    files = [path] if where == "_file" else files
    if rng.random() < 0.15:
        text = f"[nothing found for {what!r}, as plain text with * for anything]"
        said = (
            f"没有找到{what}。"
            if chinese
            else rng.choice((f"I found nothing for {what}.", f"No file mentions {what}."))
        )
    else:
        text = "\n".join(
            f"{name}:{rng.randint(1, 80)}: {rng.choice(('', 'see ', 'about '))}"
            f"{what}{rng.choice(('', ' is due', ' again', ' 2'))}"
            for name in files
        )
        said = (
            f"在{'、'.join(files)}里找到了{what}。"
            if chinese
            else rng.choice(
                (f"{what} is in {_series(files)}.", f"I found {what} in {_series(files)}.")
            )
        )
    return Exchange(request, (Step("search_files", arguments, text),), said)


def written(rng: random.Random, chinese: bool = False) -> str:
    """A text of one line for a file."""
    text = rng.choice(words("notes_chinese" if chinese else "notes")).replace(";", ",")
    roll = rng.random()
    if chinese:
        return text
    if roll < 0.3:
        return filled(rng.choice(sentences("file_lines")), rng, values(rng))
    if roll < 0.4:
        return ", ".join(rng.sample(words("foods"), rng.randint(2, 4)))
    if roll < 0.45:
        return f"{rng.choice(words('identifier_nouns'))} = {rng.randint(0, 999)}"
    if roll < 0.5:
        return f"{text}, {rng.choice(words('notes'))}".replace(";", ",")
    return text


def _block(rng: random.Random) -> str:
    """A text of several lines: a list, a table, notes."""
    roll, count = rng.random(), rng.randint(2, 5)
    if roll < 0.3:
        mark = rng.choice(("- ", "* ", "", "[ ] "))
        return "\n".join(mark + item for item in rng.sample(words("foods"), count))
    if roll < 0.45:
        lines = rng.sample(words("notes"), count)
        return "\n".join(f"{place}. {line}" for place, line in enumerate(lines, start=1))
    if roll < 0.6:
        rows = [f"{name},{rng.randint(1, 99)}" for name in rng.sample(words("names"), count)]
        return "\n".join(("name,number", *rows))
    if roll < 0.7:
        return "\n".join(rng.sample(words("notes_chinese"), count))
    return "\n".join(written(rng) for _ in range(count))


def write_task(rng: random.Random) -> Exchange:
    kind = rng.choices(("files_write", "files_write_lines", "files_write_items"), (76, 15, 9))[0]
    pattern = rng.choice(sentences(kind))
    chinese = is_chinese(pattern)
    path = path_of(rng, chinese)
    if kind == "files_write_lines":
        text = _block(rng)
    elif kind == "files_write_items":
        items = rng.choice((words("foods"), words("things"), words("objects")))
        text = ", ".join(rng.sample(items, rng.randint(2, 5)))
    else:
        text = written(rng, chinese or rng.random() < 0.04)
    request = filled(careless(pattern.replace(" ?", ""), rng), rng, {"path": path, "text": text})
    size = len(text.encode())
    if rng.random() < 0.06:
        result, said = rng.choice(
            (
                (
                    f"error: {path} cannot be written: Permission denied",
                    f"{path} could not be written: permission denied.",
                ),
                (
                    NOT_APPROVED,
                    f"{path} was not written: nobody approved it.",
                ),
            )
        )
    else:
        result = f"{rng.choice(('wrote', 'wrote', 'replaced'))} {path} ({size} B)"
        said = (
            f"已保存到 {path}。"
            if chinese
            else rng.choice(
                (f"I saved it in {path}.", f"Done, it is in {path}.", f"It is written to {path}.")
            )
        )
    return Exchange(request, (Step("write_file", {"path": path, "text": text}, result),), said)
