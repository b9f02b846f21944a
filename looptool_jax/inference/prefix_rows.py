"""Sequences that begin alike, written into rows in which every common beginning stands once.

A row is a forest of prefix trees, depth first; `ends` says who sees whom (`models.tree_attention`). Samples that were
cut from one dialogue share its history, drafts of one answer share the prompt.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

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

    Families whose sequences are mostly alike, as those of a dialogue are, stay in one row while it has room for them.
    In a row families come in the lexicographic order of their sequences: those which begin alike are neighbours.
    Raises ValueError where a family is longer than a row.
    """
    listed = [[list(sequence) for sequence in members] for members in families]
    trees = _trees(listed, time)
    rows: list[list[int]] = []  # numbers of trees
    lengths: list[int] = []
    row_of: dict[int, int] = {}
    placed: list[int] = []
    for number in sorted(range(len(trees)), key=lambda number: trees[number].size, reverse=True):
        # Of what is placed, nothing begins as much like this tree as its neighbours in the order do.
        at = bisect(placed, number)
        near = placed[max(0, at - 1) : at + 1]
        alike = max((common_length(trees[number].first, trees[other].first) for other in near), default=0)
        roomy = (row for row, length in enumerate(lengths) if length + trees[number].size - alike <= time)
        for row in (*(row_of[other] for other in near), *roomy, len(rows)):
            if row == len(rows):
                rows.append([])
                lengths.append(0)
            together = sorted([*rows[row], number])
            if (length := _length(listed, _families(trees, together))) <= time:
                rows[row], lengths[row], row_of[number] = together, length, row
                break
        placed.insert(at, number)
    return [_written(listed, _families(trees, row)) for row in rows]


class _Tree(NamedTuple):
    """Families that begin alike, in order, how many tokens they take in a row, and their first sequence."""

    families: list[int]
    size: int
    first: list[int]


def _trees(families: Sequence[list[list[int]]], time: int) -> list[_Tree]:
    """The trees in order. One ends where a family has less than half of its tokens in common with the one before, or
    has no room."""
    trees: list[_Tree] = []
    before: list[int] = []
    for number in sorted(range(len(families)), key=lambda number: families[number]):
        members = families[number]
        alone, more = _growth([], members), _growth(before, members)
        if alone > time:
            raise ValueError(f"family {number} takes {alone} tokens; a row holds {time}")
        if trees and 2 * more <= alone and trees[-1].size + more <= time:
            trees[-1].families.append(number)
            trees[-1] = trees[-1]._replace(size=trees[-1].size + more)
        else:
            trees.append(_Tree([number], alone, members[0]))
        before = members[-1]
    return trees


def _families(trees: Sequence[_Tree], numbers: Iterable[int]) -> list[int]:
    return [family for number in numbers for family in trees[number].families]


def _length(families: Sequence[list[list[int]]], order: Sequence[int]) -> int:
    """How many tokens a row of these families has."""
    befores = [[], *(families[number][-1] for number in order)]
    return sum(_growth(before, families[number]) for before, number in zip(befores, order, strict=False))


def _written(families: Sequence[list[list[int]]], order: Sequence[int]) -> PrefixRow:
    row = PrefixRow()
    open_path: list[int] = []  # places of the sequence before; what comes may still see them
    before: list[int] = []
    for number in order:
        for member, sequence in enumerate(families[number]):
            common, start = common_length(before, sequence), len(row.tokens)
            _close(row, open_path[common:])
            open_path = [*open_path[:common], *range(start, start + len(sequence) - common)]
            row.tokens += sequence[common:]
            row.positions += range(common, len(sequence))
            row.ends += [0] * (len(sequence) - common)
            row.paths[number, member] = np.array(open_path, np.int32)
            before = sequence
    _close(row, open_path)
    return row


def _growth(before: Sequence[int], members: Sequence[Sequence[int]]) -> int:
    """By how many tokens a row grows when a family comes behind a sequence."""
    pairs = zip([before, *members], members, strict=False)
    return sum(len(member) - common_length(last, member) for last, member in pairs)


def common_length(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens two sequences of one type have in common at their beginning."""
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _close(row: PrefixRow, places: Sequence[int]) -> None:
    """Nothing behind the present end of the row sees these places."""
    for place in places:
        row.ends[place] = len(row.tokens)
