"""The adapter that comes with the package, and how it is put into the default model."""

import hashlib
import json
import re
from pathlib import Path

import pytest
import torch

from trivium import hub, models
from trivium.files import cache_home
from trivium.language.chat_template import ChatTemplate
from trivium.language.engine import Engine
from trivium.language.native_step import NativeStep
from trivium.llmos import shipped
from trivium.llmos.builtin import builtin_tools
from trivium.llmos.local import LocalModel
from trivium.llmos.messages import Finish, Message, TextDelta, ToolCall
from trivium.llmos.shipped import WEIGHTS, adapter_of, load_assistant
from trivium.llmos.tools import Tool
from trivium.llmos.workspace import Workspace
from trivium.nn import native
from trivium.recipes.tool_requests.rows import TEMPLATE

FOLDER = WEIGHTS / hub.DEFAULT
MOST = 15 * 2**20  # bytes


def test_the_folder_is_whole_and_as_its_card_says() -> None:
    assert adapter_of(hub.DEFAULT) == FOLDER
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < MOST
    card = (FOLDER / "README.md").read_text()
    sums = dict(re.findall(r"([0-9a-f]{64}) +(\S+)", card))
    names = {path.name for path in FOLDER.iterdir()} - {"README.md"}
    assert set(sums.values()) == names
    for digest, name in sums.items():
        assert hashlib.sha256((FOLDER / name).read_bytes()).hexdigest() == digest, name


def test_the_template_is_that_of_the_recipe() -> None:
    assert (FOLDER / "chat_template.jinja").read_text() == TEMPLATE.read_text()
    assert json.loads((FOLDER / "adapter_config.json").read_text())["peft_type"] == "LORA"


@pytest.mark.parametrize("name", ["gemma3-270m", "/somewhere", "smollm2-135m-instruct/.."])
def test_other_models_have_none(name: str) -> None:
    assert adapter_of(name) is None


@pytest.mark.published
def test_without_tools_the_template_is_the_models_own(default_model: Path) -> None:
    own = models.load(default_model).template
    ours = ChatTemplate.from_folder(FOLDER)
    assert own is not None and ours is not None and ours.supports_tools
    for messages in (
        [{"role": "user", "content": "Hi"}],
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi\n"}],
        [
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "Hello!"},
            {"role": "user", "content": "<|im_end|>?"},
        ],
    ):
        assert ours.render(messages) == own.render(messages)


@pytest.mark.published
@pytest.mark.usefixtures("pulled_model")
def test_what_is_kept_is_what_was_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second time the changed matrices come from the cache, and are the same to the bit."""
    plain, first = load_assistant(hub.DEFAULT)
    (kept,) = (cache_home() / "adapted").iterdir()
    monkeypatch.setattr(shipped, "load", _without_adapter)
    _, second = load_assistant(hub.DEFAULT)
    assert first is not None and second is not None
    for name, value in first.model.state_dict().items():
        assert torch.equal(value, second.model.state_dict()[name]), name
    own, theirs = plain.model.state_dict(), first.model.state_dict()
    same = {name for name in own if own[name].data_ptr() == theirs[name].data_ptr()}
    assert {"embedding.panels", "layers.5.mlp_norm.weight"} <= same  # the adapter has them not
    assert not any(".mlp.down" in name for name in same)
    kept.write_bytes(b"half a file")
    with pytest.raises(AssertionError, match="made anew"):
        load_assistant(hub.DEFAULT)


def _without_adapter(path: Path, **given: object) -> object:
    assert given.pop("adapter", None) is None, "made anew"
    return models.load(path, **given)  # type: ignore[arg-type]


@pytest.mark.published
@pytest.mark.usefixtures("pulled_model")
def test_the_default_model_calls_its_tools(tmp_path: Path) -> None:
    model = LocalModel.load(hub.DEFAULT)
    weights = model.engine.language_model.model
    assert native.library() is None or NativeStep.of(weights) is not None
    tools = builtin_tools(Workspace(tmp_path))
    for request, name, arguments in (
        ("What is 12 * 7?", "calculate", {"expression": "12 * 7"}),
        ("Open notes.txt", "read_file", {"path": "notes.txt"}),
        ("What is in the folder docs?", "list_files", {"path": "docs"}),
    ):
        stream = model.stream([Message("user", request)], tools)
        call = next(iter(stream))
        stream.close()  # type: ignore[attr-defined]
        assert isinstance(call, ToolCall), request
        assert (call.name, call.parsed()) == (name, arguments)


@pytest.mark.published
@pytest.mark.usefixtures("pulled_model")
def test_plain_answers_are_those_of_the_published_model(tmp_path: Path) -> None:
    ours = LocalModel.load(hub.DEFAULT, max_tokens=12)
    published = LocalModel(Engine(models.load(hub.find(hub.DEFAULT))), max_tokens=12)
    tools = builtin_tools(Workspace(tmp_path))
    asked = [
        Message("user", "Who wrote Hamlet?"),
        Message("assistant", "William Shakespeare."),
        Message("user", "Tell me more about him."),
    ]
    words = [said(model, asked, ()) for model in (ours, published)]
    assert words[0] == words[1] == said(ours, asked, tools)


def said(model: LocalModel, messages: list[Message], tools: tuple[Tool, ...]) -> str:
    events = list(model.stream(messages, tools))
    assert isinstance(events[-1], Finish) and events[-1].usage.prompt_tokens > 0
    return "".join(event.text for event in events if isinstance(event, TextDelta))
