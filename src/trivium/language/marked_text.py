"""Markup that holds untrusted parts, as tokens: see `Tokenizer.encode_marked`."""

from collections.abc import Mapping

import tokenizers

Spans = list[tuple[int, int]]  # first character, and the one behind the last


def encode(
    text: str,
    disguise: Mapping[str, str],
    encoding: tokenizers.Encoding,
    markup: Mapping[int, str],
    plain: tokenizers.Tokenizer,
    unknown: int | None,
    anchor: str,
) -> tuple[list[int], Spans]:
    """The ids of `text` with its disguised characters revealed, and where each token reaches.

    encoding: of the disguised text, in which the tokens of `markup` are those of the markup alone
    plain: encodes what stands between them; it has no control tokens but `anchor`, which makes it
        encode as in the middle of a text
    unknown: its unknown token, which may also have been put for some text
    """
    reveal = str.maketrans({stand_in: real for real, stand_in in disguise.items()})
    read, spans = encoding.ids, encoding.offsets
    places = [
        i
        for i, id in enumerate(read)
        if id in markup and (id != unknown or text[slice(*spans[i])].strip() == markup[id])
    ]
    ids: list[int] = []
    reach: Spans = []
    first, start = 0, 0  # of the run between two control tokens: its first id, first character
    for i in [*places, len(read)]:
        end = spans[i][0] if i < len(read) else len(text)
        run = text[start:end].translate(reveal)
        if run == text[start:end]:
            ids += read[first:i]
            reach += spans[first:i]
        else:
            before = anchor if start else ""
            found = plain.encode(before + run, add_special_tokens=False)
            ids += found.ids[bool(before) :]
            shift = start - len(before)
            reach += [(a + shift, b + shift) for a, b in found.offsets[bool(before) :]]
        if i < len(read):
            ids.append(read[i])
            reach.append(spans[i])
            first, start = i + 1, spans[i][1]
    return ids, reach
