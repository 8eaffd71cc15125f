"""Make a tokenizer from a text: byte-level BPE, beside published ones.

Byte-pair encoding (Sennrich et al. 2016; over bytes, as in GPT-2) spells any Unicode text without
loss; what is frequent becomes one token. Bytes per token tell how much text fits a context.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trivium import hub
from trivium.data import Documents, documents
from trivium.errors import NotFound, UsageError
from trivium.language import bpe
from trivium.language.tokenizer import Tokenizer
from trivium.recipes.chart import Chart
from trivium.recipes.config import RecipeConfig
from trivium.recipes.run import Run

SIZES = (512, 1024, 2048, 4096, 8192, 16_384, 32_768, 65_536, 131_072)
SMALLEST_PIECE = 64 << 20  # of the data: more is read for the table of sizes only if it is less
SHOWN = 40  # of the longest tokens


@dataclass(frozen=True)
class Config(RecipeConfig):
    data: str = ""  # text: a file, folder, glob or hf:NAME; "": the reference inside CPython
    vocab_size: int = 4096  # tokens, of which 256 are the bytes
    pattern: str = "digits"  # how words are cut: digits, gpt-2, llama-3, qwen2, gpt-4o, …
    special: tuple[str, ...] = bpe.SPECIAL  # control tokens; the first ends a text
    compare: tuple[
        str, ...
    ] = ()  # names or folders of others; (): the default model, if it is here
    held_out: float = 0.1  # of the documents
    sizes: bool = True  # also measure smaller vocabularies


def others(names: tuple[str, ...]) -> dict[str, Tokenizer]:
    """Published tokenizers by name. A folder with GPT-2's two files is one too."""
    found = {}
    for name in names or (hub.DEFAULT,):
        path = Path(name).expanduser()
        try:
            found[name] = bpe.published(path if path.exists() else hub.find(name))
        except NotFound:
            if names:
                raise
    return found


def costs(
    tokenizers: dict[str, Tokenizer], held_out: Documents
) -> list[tuple[str, int, float, float]]:
    """Name, tokens of the vocabulary, bytes a token, tokens a character."""
    rows = []
    for name, tokenizer in tokenizers.items():
        found = bpe.cost(tokenizer, held_out)
        rows.append((name, tokenizer.vocab_size, found.bytes_per_token, found.tokens_per_character))
    return rows


def main(config: Config) -> dict[str, Any]:
    run = Run.start(config)
    if run.results is not None:
        return run.results
    peers = others(config.compare)
    whole = documents(config.data or None)
    train, held_out = whole.split(config.held_out)
    if config.dry_run:
        return {"bytes": whole.bytes, "seconds (about)": round(whole.bytes / 4e6, 1)}
    run.data(train)
    tokenizer = bpe.train(train, config.vocab_size, special=config.special, pattern=config.pattern)
    if tokenizer.vocab_size < config.vocab_size:
        run.tell(
            f"the text gives {tokenizer.vocab_size:,} tokens only: each word of it is one by then"
        )
    tokenizer.save(run.folder)
    smaller = [
        size for size in SIZES if 256 + len(config.special) < size < tokenizer.vocab_size
    ] * (config.sizes and train.bytes <= SMALLEST_PIECE)
    points = []
    for size in smaller:
        made = bpe.train(train, size, special=config.special, pattern=config.pattern)
        points.append((size, bpe.cost(made, held_out).bytes_per_token))
    rows = costs({"this one": tokenizer, **peers}, held_out)
    points.append((tokenizer.vocab_size, rows[0][2]))
    run.charts.append(
        Chart(
            "What a larger vocabulary gives", "tokens", "bytes per token", {"": points}, log_x=True
        )
    )
    headers = ("tokenizer", "tokens", "bytes per token", "tokens per character")
    run.tables.append(("On held-out text", headers, rows))
    run.tables.append(("Vocabularies of this text", ("tokens", "bytes per token"), points))
    run.tables.append(("Its longest tokens", ("token",), [(text,) for text in longest(tokenizer)]))
    results: dict[str, Any] = {"tokens": rows[0][1], "bytes per token": rows[0][2]}
    results |= {f"bytes per token of {name}": value for name, _, value, _ in rows[1:]}
    return run.finish(
        results, limits="It is short on text like that it was made from, and longer on other text."
    )


def longest(tokenizer: Tokenizer) -> list[str]:
    """The tokens that spell most, as Python would write them."""
    plain = (i for i in range(tokenizer.vocab_size) if i not in tokenizer.special_ids)
    spelled = sorted((tokenizer.token_bytes(i) for i in plain), key=len, reverse=True)
    if not spelled:
        raise UsageError("the tokenizer has no tokens")
    return [repr(token.decode(errors="backslashreplace")) for token in spelled[:SHOWN]]
