"""Conversations with a list of tools that has what they need: most of one request, as people begin,
others of several.

A few settings, each a list of tools and maybe a system message, serve many conversations. A request
whose tool is not on the list is told so; a sum is done with `python` where there is no `calculate`.
Beside them stand word problems whose sums are taken apart into named steps, under a system message
of their own: what a small model learns to explain it also solves better (Hsieh et al. 2023).
"""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from trivium.llmos.builtin import builtin_tools
from trivium.llmos.workspace import Workspace
from trivium.recipes.tool_requests import written
from trivium.recipes.tool_requests.code import python_task, terminal_task
from trivium.recipes.tool_requests.files import list_task, read_task, search_task, write_task
from trivium.recipes.tool_requests.linked import linked
from trivium.recipes.tool_requests.other_tools import OURS_NEXT, other_task, schemas
from trivium.recipes.tool_requests.patterns import is_chinese
from trivium.recipes.tool_requests.problems import Problem, problem
from trivium.recipes.tool_requests.replay import Reply
from trivium.recipes.tool_requests.stories import story
from trivium.recipes.tool_requests.sums import chinese_story, plain_sum
from trivium.recipes.tool_requests.tasks import Exchange, Step

Makers = tuple[tuple[float, Callable[[], list[Exchange]]], ...]  # with their shares
SYSTEMS = (
    "You are a helpful assistant.",
    "Answer in one sentence.",
    "You are the assistant of a small company.",
    "Be brief.",
    "You help with files and sums.",
    "You are a friendly assistant. Use the tools when they help.",
)
SETTINGS = 40
ALONE = 0.96  # of conversations, where all our tools are on offer
PLAIN = 0.12  # of those
NAMED = 0.2  # of all, beside them: word problems whose steps are named, without tools
NAMING = "Name each step of the sum."
FILES = frozenset({"list_files", "read_file", "search_files", "write_file", "terminal"})
REFUSED = {
    "weather",
    "set_timer",
    "send_email",
    "play_music",
    "light",
    "track_order",
    "create_event",
    "draw_picture",
    "edit_picture",
    "cut_out",
    "search_documents",
    "read_file",
    "list_files",
    "search_files",
    "write_file",
    "terminal",
    "book_table",
}
REFUSALS = (
    "I have no tool for that here.",
    "I cannot do that: none of my tools can.",
    "That is not possible with the tools that I have.",
)
REFUSALS_CHINESE = ("我没有能做这件事的工具。",)


@dataclass(frozen=True)
class Dialogue:
    """A conversation in OpenAI's form; `whole` is False if its last answer was cut."""

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]]
    whole: bool = True


def task(rng: random.Random, problems: Sequence[Problem] = ()) -> list[Exchange]:
    """One request, or two that hang together."""
    makers: Makers = (
        (0.20 if problems else 0.30, lambda: [story(rng)]),
        (0.25 if problems else 0, lambda: [problem(rng, problems)]),
        (0.09, lambda: [plain_sum(rng)]),
        (0.02, lambda: [plain_sum(rng, chinese=True)]),
        (0.03, lambda: [chinese_story(rng)]),
        (0.12, lambda: [python_task(rng)]),
        (0.03, lambda: [terminal_task(rng)]),
        (0.04, lambda: [read_task(rng)]),
        (0.05, lambda: [list_task(rng)]),
        (0.07, lambda: [search_task(rng)]),
        (0.05, lambda: [write_task(rng)]),
        (0.11, lambda: [other_task(rng, OURS_NEXT)]),
        (0.03, lambda: [other_task(rng)]),
        (0.10, lambda: linked(rng)),
    )
    return _made(makers, rng)


def _made(makers: Makers, rng: random.Random) -> list[Exchange]:
    """By one of them, drawn by their shares."""
    (_, make), *_ = rng.choices(makers, [share for share, _ in makers])
    return make()


def tool_list(
    rng: random.Random, all_tools: dict[str, dict[str, Any]], ours: Sequence[str]
) -> list[str]:
    """The names of a list: mostly ours, alone or with others, in the order the kernel has them."""
    others = [name for name in all_tools if name not in ours]
    roll = rng.random()
    if roll < 0.45:
        return list(ours)
    if roll < 0.8:
        return [*ours, *sorted(OURS_NEXT, key=others.index)]
    if roll < 0.88:
        return [*ours, *rng.sample(others, rng.randint(1, 3))]
    if roll < 0.95:
        some = [*rng.sample(list(ours), rng.randint(2, 5)), *rng.sample(others, rng.randint(0, 3))]
        rng.shuffle(some)
        return some
    return rng.sample(others, rng.randint(1, 4))


def _fitting(
    found: list[Exchange], offered: Sequence[str], rng: random.Random
) -> list[Exchange] | None:
    """The exchanges as they go with the tools on offer; None if they do not."""
    missing = {name for exchange in found for name in exchange.tools} - set(offered)
    if not missing:
        return found
    if (
        missing == {"calculate"}
        and "python" in offered
        and len(found) == 1
        and len(found[0].steps) == 1
    ):
        step = found[0].steps[0]
        expression = str(step.arguments["expression"])
        if set(expression) <= set("0123456789.+-*/() ") and "…" not in step.result:
            code = Step("python", {"code": f"print({expression})"}, step.result)
            return [replace(found[0], steps=(code,))]
    if missing <= REFUSED and len(found) == 1 and rng.random() < 0.1:
        told = REFUSALS_CHINESE if is_chinese(found[0].request) else REFUSALS
        return [Exchange(found[0].request, (), rng.choice(told))]
    return None


@dataclass(frozen=True)
class _Setting:
    """What conversations begin with."""

    system: str
    offered: list[str]


def dialogues(
    seed: int | str,
    replies: Sequence[Reply],
    problems: Sequence[Problem] = (),
    *,
    held: bool = False,
) -> Iterator[Dialogue]:
    """Endless; `replies` are the plain turns, used in turn, and `problems` those of a file. Those
    that are `held` back are of one request each, from rows of the tables that no others have."""
    rng = random.Random(seed)
    ours_made = {tool.name: tool.to_json() for tool in builtin_tools(Workspace.__new__(Workspace))}
    ours = list(ours_made)
    all_tools = ours_made | schemas()
    plain = _shuffled(replies, rng)
    answers = {reply.request: reply.answer for reply in replies if reply.past}
    settings = [
        _Setting(
            rng.choice(SYSTEMS) if rng.random() < 0.12 else "", tool_list(rng, all_tools, ours)
        )
        for _ in range(SETTINGS)
    ]
    while True:
        if not held and rng.random() < NAMED:
            system = {"role": "system", "content": NAMING}
            yield Dialogue([system, *written.named_steps(rng).messages()], [])
            continue
        setting = rng.choice(settings)
        offered = setting.offered
        if set(ours) <= set(offered) and (held or rng.random() < ALONE):
            messages, whole = _alone(offered, plain, answers, problems, rng, held)
        elif held:
            continue
        else:
            messages, whole = _several(offered, ours, plain, problems, rng)
        if setting.system:
            messages.insert(0, {"role": "system", "content": setting.system})
        tools = [all_tools[name] for name in offered]
        called = any("tool_calls" in message for message in messages)
        yield Dialogue(messages, [] if not called and rng.random() < 0.1 else tools, whole)


def _alone(
    offered: Sequence[str],
    plain: Iterator[Reply],
    answers: Mapping[str, str],
    problems: Sequence[Problem],
    rng: random.Random,
    held: bool,
) -> tuple[list[dict[str, Any]], bool]:
    """One request, or one that leans on another, and whether the answer is whole."""
    makers: Makers = (
        (0.40, lambda: [written.problem(rng, held)]),
        (0 if held else 0.03, lambda: [story(rng)]),
        (0.02 if problems else 0, lambda: [problem(rng, problems)]),
        (0.15, lambda: [written.request(rng, frozenset({"calculate"}), held)]),
        (0.14, lambda: [written.request(rng, frozenset({"python"}), held)]),
        (0.08, lambda: [written.request(rng, FILES, held)]),
        (0.10, lambda: [written.request(rng, OURS_NEXT, held)]),
        (0.07, lambda: written.follow_up(rng, answers, held)),
        (0 if held else 0.01, lambda: task(rng, problems)),
    )
    if rng.random() < PLAIN:
        reply = next(plain)
        turns = [*reply.past, (reply.request, reply.answer)]
        return [m for asked, answered in turns for m in _turn(asked, answered)], reply.whole
    while True:
        found = _made(makers, rng)
        if {name for exchange in found for name in exchange.tools} <= set(offered):
            return [m for exchange in found for m in exchange.messages()], True


def _several(
    offered: Sequence[str],
    ours: Sequence[str],
    plain: Iterator[Reply],
    problems: Sequence[Problem],
    rng: random.Random,
) -> tuple[list[dict[str, Any]], bool]:
    """Some turns, and whether the last one is whole."""
    messages: list[dict[str, Any]] = []
    for _ in range(rng.choice((1, 1, 2, 2, 3))):
        if rng.random() < 0.15:
            reply = next(plain)
            for asked, answered in reply.past:
                messages += _turn(asked, answered) if rng.random() < 0.7 or not messages else []
            messages += _turn(reply.request, reply.answer)
            if not reply.whole:
                return messages, False
            continue
        fitting = None
        while fitting is None:
            found = task(rng, problems)
            if len(offered) < 5 and rng.random() < 0.7:
                names = {name for name in offered if name not in ours}
                found = [other_task(rng, names)] if names else found
            fitting = _fitting(found, offered, rng)
        for exchange in fitting:
            messages += exchange.messages()
    return messages, True


def _turn(asked: str, answered: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]


def _shuffled(replies: Sequence[Reply], rng: random.Random) -> Iterator[Reply]:
    while True:
        order = list(replies)
        rng.shuffle(order)
        yield from order
