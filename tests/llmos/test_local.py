"""A language model as a chat model: led by examples, or through its own template."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from trivium.errors import UsageError
from trivium.language.chat_template import ChatTemplate
from trivium.language.engine import Engine
from trivium.language.generation import End, Request, Token
from trivium.language.pretrained import LanguageModel
from trivium.language.sampling import Sampling
from trivium.language.tokenizer import Tokenizer
from trivium.language.transformer import Transformer, TransformerConfig
from trivium.llmos import few_shot, native_tools
from trivium.llmos.examples import EXAMPLES, NO_TOOL
from trivium.llmos.faithful import unsaid
from trivium.llmos.few_shot import ToolChooser, abridged, copied, examples, fill_arguments
from trivium.llmos.local import LocalModel, told
from trivium.llmos.messages import Finish, Message, ModelEvent, TextDelta, ToolCall
from trivium.llmos.native_tools import HERMES, LLAMA, MISTRAL, Form, Parser
from trivium.llmos.tools import Tool, tool

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WITH_TOOLS = "{% if tools %}<tool_call>{{ tools | tojson }}{% endif %}" + CHATML


@tool
def calculate(expression: str) -> str:
    """Work out a sum.

    expression: such as 1 + 2
    """
    return expression


@tool(effect="read")
def read_file(path: str, lines: int = 10) -> str:
    """Read a file.

    path: which one
    lines: how many
    """
    return path


@tool
def shout(text: str, loud: bool, times: list[int] | None = None) -> str:
    """Nobody wrote examples for this one.

    text: what
    loud: how
    """
    return text


TOOLS = (calculate, read_file)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    words = [json.dumps(given) + request for t in EXAMPLES.values() for request, given in t]
    return Tokenizer.train([*words, *NO_TOOL], 600)


def make_model(tokenizer: Tokenizer, template: str | None, seed: int = 0) -> LocalModel:
    torch.manual_seed(seed)
    config = TransformerConfig(
        vocab_size=tokenizer.vocab_size, context=2048, width=96, layers=5, heads=4, hidden=96
    )
    model = Transformer(config).eval()
    chat = ChatTemplate(template) if template is not None else None
    language_model = LanguageModel("tiny", model, tokenizer, chat, "float32")
    return LocalModel(Engine(language_model), Sampling(temperature=1.0, seed=seed), max_tokens=24)


@pytest.fixture
def model(tokenizer: Tokenizer) -> LocalModel:
    return make_model(tokenizer, CHATML)


def ask(model: LocalModel, text: str, tools: Sequence[Tool] = ()) -> list[ModelEvent]:
    return list(model.stream([Message("user", text)], tools))


def test_without_tools_it_talks(model: LocalModel) -> None:
    *deltas, finish = ask(model, "Who wrote Hamlet?")
    assert isinstance(finish, Finish) and finish.usage.prompt_tokens > 0
    assert deltas and all(isinstance(event, TextDelta) for event in deltas)


def test_a_model_without_a_template_cannot_chat(tokenizer: Tokenizer) -> None:
    with pytest.raises(UsageError, match="trivium complete"):
        make_model(tokenizer, None)


def test_pictures_are_refused(model: LocalModel) -> None:
    picture = {"type": "image_url", "image_url": {"url": "data:,"}}
    with pytest.raises(UsageError, match="text only"):
        model.stream([Message("user", (picture,))])


def test_the_chooser_knows_its_own_examples(model: LocalModel) -> None:
    """Even on the vectors of a random model, ridge regression fits what it was shown."""
    chooser = ToolChooser(model.engine, TOOLS)
    wanted = [(None, request) for request in NO_TOOL]
    wanted += [(t, request) for t in TOOLS for request, _ in examples(t)]
    right = sum(chooser.choose(request).tool is t for t, request in wanted)
    assert right / len(wanted) > 0.8
    request = examples(calculate)[3][0]
    nearest = chooser.nearest(calculate, chooser.choose(request).vector)
    assert nearest[-1][0] == request and len(nearest) == few_shot.SHOWN


def test_the_chooser_is_ridge_regression(model: LocalModel) -> None:
    """Scores equal scikit-learn's, to float32."""
    linear_model = pytest.importorskip("sklearn.linear_model")
    chooser = ToolChooser(model.engine, TOOLS)
    x = chooser._standard(chooser._vectors)
    y = torch.where(chooser._owner[:, None] == torch.arange(len(TOOLS) + 1), 1.0, -1.0)
    reference = linear_model.Ridge(alpha=few_shot.RIDGE).fit(x.double(), y.double())
    ours = x @ chooser._weights + chooser._offset
    expected = torch.from_numpy(reference.predict(x.double())).float()
    torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-3)


def test_vectors_of_the_examples_are_kept(
    model: LocalModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = ToolChooser(model.engine, TOOLS)
    monkeypatch.setattr(model.engine, "features", None)  # may not be needed again
    again = ToolChooser(model.engine, TOOLS)
    assert torch.equal(first._weights, again._weights)


def test_a_damaged_store_of_vectors_is_made_anew(model: LocalModel, tmp_path: Path) -> None:
    ToolChooser(model.engine, TOOLS)
    (stored,) = tmp_path.rglob("*.safetensors")
    stored.write_bytes(b"half a f")
    ToolChooser(model.engine, TOOLS)
    assert stored.stat().st_size > 1000


@pytest.mark.parametrize("wanted", [calculate, read_file, shout], ids=lambda t: t.name)
def test_arguments_are_well_formed(tokenizer: Tokenizer, wanted: Tool) -> None:
    """A random model, at random: what comes out still fits the schema."""
    for seed in range(4):
        engine = make_model(tokenizer, CHATML, seed).engine
        request = 'look at "my notes/été 2.txt", it\'s 3 + 4\nor so \\ 你好'
        arguments, ends = fill_arguments(engine, wanted, request, examples(wanted)[:3])
        wanted.check(arguments)
        assert ends
        if wanted is read_file:
            assert arguments["path"] in abridged(request)


def test_what_is_always_a_piece_of_the_request_is_copied() -> None:
    assert copied("path", EXAMPLES["read_file"], None)
    assert copied("path", EXAMPLES["list_files"], ".")
    assert copied("text", EXAMPLES["write_file"], None)
    assert not copied("expression", EXAMPLES["calculate"], None)
    assert not copied("text", examples(shout), None)


def test_the_examples_fit_the_tools() -> None:
    """What the built-in tools are shown with, they accept."""
    from trivium.llmos.builtin import builtin_tools
    from trivium.llmos.workspace import Workspace

    tools = {t.name: t for t in builtin_tools(Workspace(Path(".")))}
    assert tools.keys() == EXAMPLES.keys()
    for name, known in EXAMPLES.items():
        for _, given in known:
            tools[name].check(given)
    requests = [request for known in EXAMPLES.values() for request, _ in known] + list(NO_TOOL)
    assert len(set(requests)) == len(requests)


def test_a_tool_call_then_an_answer(model: LocalModel, monkeypatch: pytest.MonkeyPatch) -> None:
    request = examples(calculate)[0][0]
    call, finish = ask(model, request, TOOLS)
    assert isinstance(call, ToolCall) and call.name == "calculate"
    assert isinstance(finish, Finish) and finish.reason == "tool_calls"
    after = [
        Message("user", request),
        Message("assistant", "", (call,)),
        Message("tool", "84", tool_call_id=call.id, name="calculate"),
    ]
    *deltas, finish = model.stream(after, TOOLS)
    text = "".join(event.text for event in deltas if isinstance(event, TextDelta))
    assert finish.reason in ("stop", "length")
    assert "84" in text, "the result is in the answer, whatever the model said"


def test_the_conversation_as_a_small_model_reads_it() -> None:
    call = ToolCall("1", "calculate", "{}")
    past = [
        Message("system", "Be kind."),
        Message("user", "6*7?"),
        Message("assistant", "", (call,)),
        Message("tool", "42", tool_call_id="1", name="calculate"),
        Message("assistant", "It is 42."),
        Message("user", "and 2*2?"),
    ]
    effects = {"calculate": "none", "read_file": "read"}
    plain = told(past, 5, effects)
    assert [(m.role, m.text) for m in plain] == [
        ("system", "Be kind."),
        ("user", "6*7?"),
        ("assistant", "It is 42."),
        ("user", "and 2*2?"),
    ]
    result = Message("tool", "4", tool_call_id="2", name="calculate")
    last = told([*past, Message("assistant", "", (call,)), result], 5, effects)[-1]
    assert last.role == "user" and "and 2*2?" in last.text and "4" in last.text
    text = Message("tool", "once upon", tool_call_id="2", name="read_file")
    last = told([*past, Message("assistant", "", (call,)), text], 5, effects)[-1]
    assert last.text.startswith("Text:\nonce upon")


@pytest.mark.parametrize(
    ("result", "answer", "added"),
    [("84", "It is 84.", ""), ("84", "It is 48.", "\n\nt: 84"), ("a\nb", "no", ""), ("", "x", "")],
)
def test_a_short_result_is_named(result: str, answer: str, added: str) -> None:
    assert unsaid([Message("tool", result, name="t")], answer) == added


def test_a_failure_is_said_as_it_is(model: LocalModel) -> None:
    call = ToolCall("1", "calculate", "{}")
    turn = [
        Message("user", "1/0?"),
        Message("assistant", "", (call,)),
        Message("tool", "error: division by zero", tool_call_id="1", name="calculate"),
    ]
    delta, finish = model.stream(turn, TOOLS)
    assert delta == TextDelta("That did not work: division by zero")
    assert finish == Finish("stop")


# Models that know tools


def pieces(text: str, size: int) -> list[Token | End]:
    tokens: list[Token | End] = [Token(0, text[i : i + size]) for i in range(0, len(text), size)]
    return [*tokens, End("stop", "", 1, len(tokens), 0)]


CALL = '{"name": "calculate", "%s": {"expression": "1 + 2"}}'


@pytest.mark.parametrize("size", [1, 3, 7, 1000])
@pytest.mark.parametrize(
    ("form", "text", "said", "called"),
    [
        (HERMES, "Hi! <b>\n", "Hi! <b>\n", 0),
        (HERMES, f"Sure.<tool_call>\n{CALL % 'arguments'}\n</tool_call>", "Sure.", 1),
        (HERMES, f"<tool_call>\n{CALL % 'arguments'}\n</tool_call>" * 2, "", 2),
        (HERMES, "<tool_call>\nnot json\n</tool_call>", "<tool_call>\nnot json\n</tool_call>", 0),
        (HERMES, "a <tool_c", "a <tool_c", 0),
        (HERMES, f"<tool_call>\n{CALL % 'arguments'}", "", 1),
        (MISTRAL, f"[TOOL_CALLS] [{CALL % 'arguments'}, {CALL % 'arguments'}]", "", 2),
        (LLAMA, CALL % "parameters", "", 1),
        (LLAMA, "Just text.", "Just text.", 0),
    ],
)
def test_calls_are_found_in_the_text(
    tokenizer: Tokenizer, form: Form, text: str, said: str, called: int, size: int
) -> None:
    parser = Parser(form, tokenizer)
    events = [event for piece in pieces(text, size) for event in parser.push(piece)]
    assert "".join(event.text for event in events if isinstance(event, TextDelta)) == said
    calls = [event for event in events if isinstance(event, ToolCall)]
    assert len(calls) == called and len({call.id for call in calls}) == called
    assert all(call.parsed() == {"expression": "1 + 2"} for call in calls)


@pytest.mark.parametrize("form", [HERMES, MISTRAL, LLAMA])
def test_constrained_calls_are_always_calls_of_a_tool(tokenizer: Tokenizer, form: Form) -> None:
    """A random model at high temperature: from the sign on, nothing but a well-formed call."""
    engine = make_model(tokenizer, WITH_TOOLS).engine
    found = 0
    for seed in range(6):
        torch.manual_seed(seed)
        grammar = native_tools.grammar(form, TOOLS)
        constraint = engine.constrainer.start(grammar)
        begun = {HERMES: "<tool_call>\n", MISTRAL: "[TOOL_CALLS] [", LLAMA: '{"name"'}[form]
        start = engine.tokenizer.encode(begun)
        for token in start:
            constraint.accept(token)
        ids, logits = list(start), torch.randn(400, tokenizer.vocab_size)
        for row in logits:
            if constraint.finished or constraint.complete:
                break
            # Lengthy strings end in time: the quote is likely.
            row[engine.tokenizer.encode('"')[0]] += 6
            allowed = constraint.mask(row.clone())
            token = int(torch.multinomial(allowed.softmax(0), 1))
            if token in engine.tokenizer.stop_ids:
                break
            constraint.accept(token)
            ids.append(token)
        parser = Parser(form, engine.tokenizer)
        text = engine.tokenizer.decode(ids)
        events = [event for piece in pieces(text, 5) for event in parser.push(piece)]
        for event in events:
            if isinstance(event, ToolCall):
                found += 1
                next(t for t in TOOLS if t.name == event.name).check(event.parsed())
    assert found >= 2


@pytest.mark.parametrize("first", ["<tool_call>", "Hello"])
def test_a_template_with_tools_is_used(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, first: str
) -> None:
    model = make_model(tokenizer, WITH_TOOLS)
    seen: list[str] = []
    reply = f"<tool_call>\n{CALL % 'arguments'}\n</tool_call>"

    def scripted(request: Request) -> object:
        if request.max_tokens == 1:  # how the likeliest reply begins
            return iter([Token(tokenizer.encode(first)[0], "")])
        seen.append(tokenizer.decode(request.prompt, skip_special=False))
        assert request.grammar is not None
        likeliest = Sampling()
        assert request.sampling == (likeliest if first != "Hello" else model.sampling)
        return iter(pieces(reply, 4))

    monkeypatch.setattr(model.engine, "generate", scripted)
    call, finish = ask(model, "1 + 2?", TOOLS)
    assert isinstance(call, ToolCall) and call.parsed() == {"expression": "1 + 2"}
    assert finish == Finish("tool_calls", finish.usage)
    assert '"name": "read_file"' in seen[0]


@pytest.mark.parametrize(
    ("template", "form"),
    [
        ("…<tool_call>…", HERMES),
        ("[TOOL_CALLS]", MISTRAL),
        ('{"parameters": x', LLAMA),
        ("", HERMES),
    ],
)
def test_forms_are_recognised(template: str, form: Form) -> None:
    assert native_tools.form_of(template) is form
