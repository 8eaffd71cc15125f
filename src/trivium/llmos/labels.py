"""Labels: who wrote a text, and who may read it.

A label is a pair (sources, readers). Sources name everyone but the user who had a hand in a text,
such as `file:notes.txt`; the user's own words have none. Readers are the audience a text may reach;
PUBLIC is everyone. Text made from two texts has the join of their labels

    (S1, R1) | (S2, R2) = (S1 ∪ S2, R1 ∩ R2)

which is commutative, associative and idempotent, and never more permissive than either side: a
bounded join-semilattice, as in Denning, "A Lattice Model of Secure Information Flow" (1976).
"""

from dataclasses import dataclass

PUBLIC = None


@dataclass(frozen=True)
class Label:
    sources: frozenset[str] = frozenset()
    readers: frozenset[str] | None = PUBLIC

    def __or__(self, other: "Label") -> "Label":
        if self.readers is None or other.readers is None:
            readers = other.readers if self.readers is None else self.readers
        else:
            readers = self.readers & other.readers
        return Label(self.sources | other.sources, readers)

    def permits(self, other: "Label") -> bool:
        """Whether whatever is allowed under `other` is allowed under this label too."""
        return self | other == other


USER = Label()
