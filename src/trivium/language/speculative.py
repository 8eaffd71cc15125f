"""Prompt-lookup drafts: what a text said before, it may say again (Saxena 2023, "prompt lookup
decoding").

The last tokens of the text (an n-gram, n from 4 down to 2) are looked up in the text before them,
and what followed there the last time is the draft of what follows now. A draft is verified by
reading it in one pass. Its tokens are accepted as long as the draw from the verified logits, with
the random numbers of plain decoding, gives the same token. (That is the rule of Leviathan et al.
2023 for a draft without a distribution of its own, in the form that keeps not only the distribution
of the text but the text.)

Reading a token in vain is not free. So a lookup is first trusted silently: what it would have
said is compared with what came, at no cost, and only after some right guesses in a row (`patience`)
it drafts. A draft is as long as the row of right guesses; one wrong guess ends the row. A draft in
vain doubles the patience, a long row halves it.
"""

from collections.abc import Sequence

LONGEST, SHORTEST = 4, 2  # tokens of an n-gram
PATIENCE = 2  # right guesses in a row before the first draft
MOST_PATIENCE = 16


class PromptLookup:
    """Drafts for one text, which begins with `tokens`; what is chosen goes in by `push`."""

    def __init__(self, tokens: Sequence[int]) -> None:
        self._tokens = list(tokens)
        self._after: dict[tuple[int, ...], int] = {}  # n-gram → the place behind its last one
        for n in range(SHORTEST, LONGEST + 1):
            n_grams = zip(*(tokens[i:] for i in range(n)), strict=False)
            self._after.update(zip(n_grams, range(n, len(tokens)), strict=False))
        self._place = self._look_up()  # of the token that should come next
        self._right = 0  # guesses in a row
        self._patience = PATIENCE

    def push(self, token: int) -> None:
        """Append a token of the text."""
        if self._place is not None and self._tokens[self._place] == token:
            self._right += 1
            if self._right == 2 * self._patience:
                self._patience = max(self._patience // 2, 1)
        else:
            if self._place is not None and self._right >= self._patience:
                self._patience = min(2 * self._patience, MOST_PATIENCE)
            self._right = 0
        end = len(self._tokens)
        for n in range(SHORTEST, min(LONGEST, end) + 1):  # only now is it known what follows them
            self._after[tuple(self._tokens[-n:])] = end
        self._tokens.append(token)
        self._place = self._look_up()

    def _look_up(self) -> int | None:
        for n in range(min(LONGEST, len(self._tokens)), SHORTEST - 1, -1):
            place = self._after.get(tuple(self._tokens[-n:]))
            if place is not None:
                return place
        return None

    def draft(self, most: int) -> list[int]:
        """The tokens that are likely to follow, at most `most`; possibly none."""
        if self._place is None or self._right < self._patience:
            return []
        tokens, start = self._tokens, self._place
        period = len(tokens) - start  # beyond the end, the draft follows itself
        return [tokens[start + i % period] for i in range(min(most, self._right))]
