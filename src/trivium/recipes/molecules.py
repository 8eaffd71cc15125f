"""Molecules as text, made at random: SMILES (Weininger 1988), a language of its own.

    CC(=O)Nc1ccc(O)cc1      atoms, bonds = and #, branches in brackets, rings closed by digits

A molecule grows from a first fragment; a further one is put where an atom has a bond to spare, so
that no atom has more bonds than its valence. They are like those of chemistry in form only.
"""

import random
from collections.abc import Iterator

VALENCE = {"C": 4, "N": 3, "O": 2, "S": 2, "F": 1, "Cl": 1, "Br": 1}
ATOMS, SHARES = ("C", "N", "O", "S", "F", "Cl", "Br"), (60, 12, 14, 3, 5, 4, 2)
# Rings as (atom, what may hang on it): an aromatic carbon has one bond to spare, one in CC two.
RINGS: tuple[tuple[tuple[str, int], ...], ...] = (
    (("c", 1),) * 6,
    (("c", 1),) * 5 + (("n", 0),),
    (("c", 1), ("c", 1), ("n", 0), ("c", 1), ("n", 0), ("c", 1)),
    (("c", 1), ("c", 1), ("c", 1), ("c", 1), ("o", 0)),
    (("c", 1), ("c", 1), ("c", 1), ("c", 1), ("s", 0)),
    (("c", 1), ("c", 1), ("n", 0), ("c", 1), ("[nH]", 0)),
    (("C", 2),) * 6,
    (("C", 2),) * 5,
    (("C", 2),) * 3,
    (("C", 2), ("C", 2), ("N", 1), ("C", 2), ("C", 2), ("O", 0)),
    (("C", 2), ("C", 2), ("N", 1), ("C", 2), ("C", 2)),
)
RING_SHARE, BRANCH_SHARE, DOUBLE_SHARE = 0.22, 0.45, 0.15
MOST_ATOMS = 24


def smiles(count: int, seed: int = 0) -> Iterator[str]:
    """`count` different molecules."""
    generator, seen = random.Random(seed), set[str]()
    while len(seen) < count:
        molecule = _Molecule(generator).written()
        if molecule not in seen:
            seen.add(molecule)
            yield molecule


class _Molecule:
    def __init__(self, generator: random.Random) -> None:
        self._random = generator
        self._left = generator.randint(4, MOST_ATOMS)
        self._rings = 0  # of which digits are in use

    def written(self) -> str:
        return self._fragment(0)

    def _fragment(self, bond: int) -> str:
        """A part that hangs on a bond of this order (0: on none)."""
        if self._left >= 5 and bond < 2 and self._rings < 4 and self._random.random() < RING_SHARE:
            return self._ring(bond)
        fitting = [(a, s) for a, s in zip(ATOMS, SHARES, strict=True) if VALENCE[a] >= max(bond, 1)]
        atoms, shares = zip(*fitting, strict=True)
        atom: str = self._random.choices(atoms, shares)[0]
        self._left -= 1
        return atom + self._hung(VALENCE[atom] - bond)

    def _ring(self, bond: int) -> str:
        ring = list(self._random.choice(RINGS))
        first = self._random.choice([i for i, (_, spare) in enumerate(ring) if spare])
        ring = ring[first:] + ring[:first]  # the atom it hangs on, or begins with
        self._left -= len(ring)
        self._rings += 1
        digit, text = str(self._rings), ""
        last = len(ring) - 1
        for place, (atom, spare) in enumerate(ring):
            room = spare - bond if place == 0 else spare
            mark = digit if place in (0, last) else ""
            hung = self._hung(min(room, 1), always_branch=place < last) if room > 0 else ""
            text += atom + mark + hung
        return text

    def _hung(self, spare: int, *, always_branch: bool = False) -> str:
        """What hangs on an atom with so many bonds to spare: branches, then what follows it."""
        parts: list[tuple[int, str]] = []
        while spare > 0 and self._left > 0:
            if parts and self._random.random() > BRANCH_SHARE:
                break
            if always_branch and self._random.random() > 0.3:
                break
            order = 2 if spare > 1 and self._random.random() < DOUBLE_SHARE else 1
            parts.append((order, self._fragment(order)))
            spare -= order
        marks = [("=" if order == 2 else "") + text for order, text in parts]
        behind = "" if always_branch or not marks else marks.pop()
        return "".join(f"({mark})" for mark in marks) + behind
