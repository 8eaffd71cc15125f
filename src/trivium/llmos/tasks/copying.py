"""Grammars of what is copied from a text, word for word.

They are Lark grammars of llguidance, as text: writing them needs no library.
"""

import json
import re

# What a copy never splits: a word, a number. Any other character stands for itself.
_CHUNK = re.compile(r"[A-Za-z0-9_\u00c0-\u024f\u0370-\u052f]+(?:['’.-][A-Za-z0-9]+)*|.", re.DOTALL)


def copy_rule(text: str) -> str:
    """The terminal COPY: a piece of `text`, as it stands within a JSON string, that begins and ends
    between words and is not empty."""
    chunks = [json.dumps(chunk, ensure_ascii=False)[1:-1] for chunk in _CHUNK.findall(text)]
    piece = json.dumps({"substring_chunks": chunks}, ensure_ascii=False)
    return f"COPY: PIECE & /(?s:[^ ].*)/\nPIECE: %regex {piece}"


def literal(text: str) -> str:
    """`text` as a literal of Lark, which is JSON's with DEL escaped too."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
