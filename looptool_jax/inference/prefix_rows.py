"""Sequences that begin alike, written into rows in which every common beginning stands once.

A row is a forest of prefix trees, depth first; `ends` says who sees whom (`models.tree_attention`). Samples that were
cut from one dialogue share its history, drafts of one answer share the prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Int


@dataclass
class PrefixRow:
    """Tokens of one row, and the places of each of its sequences' tokens, by (family, member)."""

    tokens: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    paths: dict[tuple[int, int], Int[np.ndarray, " length"]] = field(default_factory=dict)


def prefix_rows(families: Sequence[Sequence[Sequence[int]]], time: int) -> list[PrefixRow]:
    """Rows of at most `time` tokens that hold all sequences, those of one family in one row.

    Families come in the lexicographic order of their sequences, so that those which begin alike are neighbours.
    Raises ValueError where a family is longer than a row.
    """
    order = sorted(range(len(families)), key=lambda number: [list(sequence) for sequence in families[number]])
    rows: list[PrefixRow] = []
    open_path: list[int] = []  # places of the sequence before; what comes may still see them
    before: Sequence[int] = ()
    for number in order:
        members = families[number]
        if not rows or len(rows[-1].tokens) + _growth(before, members) > time:
            if rows:
                _close(rows[-1], open_path)
            rows.append(PrefixRow())
            open_path, before = [], ()
            if (length := _growth((), members)) > time:
                raise ValueError(f"family {number} takes {length} tokens; a row holds {time}")
        row = rows[-1]
        for member, sequence in enumerate(members):
            common, start = common_length(before, sequence), len(row.tokens)
            _close(row, open_path[common:])
            open_path = [*open_path[:common], *range(start, start + len(sequence) - common)]
            row.tokens += sequence[common:]
            row.positions += range(common, len(sequence))
            row.ends += [0] * (len(sequence) - common)
            row.paths[number, member] = np.array(open_path, np.int32)
            before = sequence
    if rows:
        _close(rows[-1], open_path)
    return rows


def _growth(before: Sequence[int], members: Sequence[Sequence[int]]) -> int:
    """By how many tokens a row grows when a family comes behind a sequence."""
    pairs = zip([before, *members], members, strict=False)
    return sum(len(member) - common_length(last, member) for last, member in pairs)


def common_length(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens two sequences have in common at their beginning."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _close(row: PrefixRow, places: Sequence[int]) -> None:
    """Nothing behind the present end of the row sees these places."""
    for place in places:
        row.ends[place] = len(row.tokens)
