"""The same tokens carry loss as with transformers, where a template marks them."""

from typing import Any

import pytest
from tests.language.test_chat_template import SOURCES, TOKENIZER
from tests.language.test_rendering import TAGGED, TALK, says, user
from tokenizers import Tokenizer as Library

from trivium.language.chat_template import ChatTemplate
from trivium.language.rendering import render

transformers = pytest.importorskip("transformers")

CHATS = [
    TALK,
    [user("Hi"), says("a b  c\n\n d"), user("x"), says("Größer, 更大 🙂?")],
    [{"role": "system", "content": "s"}, user("Hi"), says("")],
]


@pytest.mark.parametrize("source", [TAGGED, SOURCES["training"]], ids=["tagged", "training"])
@pytest.mark.parametrize("messages", CHATS, ids=["talk", "spaces", "empty"])
def test_the_mask_of_transformers(source: str, messages: list[dict[str, Any]]) -> None:
    theirs = transformers.PreTrainedTokenizerFast(
        tokenizer_object=Library.from_str(TOKENIZER.to_json()), bos_token="<|begin|>"
    )
    plain = [{**m, "content": m["content"].replace("<|im_end|>", "")} for m in messages]
    expected = theirs.apply_chat_template(
        plain,
        chat_template=source,
        tokenize=True,
        return_dict=True,
        return_assistant_tokens_mask=True,
    )
    ids, learnt = render(TOKENIZER, ChatTemplate(source, bos_token="<|begin|>"), plain)
    assert ids == expected["input_ids"]
    assert [int(mine) for mine in learnt] == expected["assistant_masks"]
    assert any(learnt)
