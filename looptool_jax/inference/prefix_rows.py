"""Sequences that begin alike, written into rows in which every common beginning stands once.

A row is a forest of prefix trees, depth first; `ends` says who sees whom (`models.tree_attention`). Samples that were
cut from one dialogue share its history, drafts of one answer share the prompt.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
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
    rows: list[list[_Tree]] = []
    lengths: list[int] = []
    for tree in sorted(_trees(listed, time), key=attrgetter("size"), reverse=True):
        # Where a row begins alike with another tree, this one takes that much less.
        needs = [tree.size - max(common_length(tree.first, other.first) for other in row) for row in rows]
        for row in sorted(range(len(rows)), key=needs.__getitem__):
            if lengths[row] + needs[row] <= time and (length := _length(listed, [*rows[row], tree])) <= time:
                rows[row].append(tree)
                lengths[row] = length
                break
        else:
            rows.append([tree])
            lengths.append(tree.size)
    return [_written(listed, row) for row in rows]


class _Tree(NamedTuple):
    """Families that begin alike, how many tokens they take in a row, and their first sequence."""

    families: list[int]
    size: int
    first: Sequence[int]


def _trees(families: Sequence[list[list[int]]], time: int) -> list[_Tree]:
    """A tree ends where a family has less than half of its tokens in common with the one before, or has no room."""
    trees: list[_Tree] = []
    before: Sequence[int] = []
    for number in _in_order(families, range(len(families))):
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


def _in_order(families: Sequence[list[list[int]]], numbers: Iterable[int]) -> list[int]:
    return sorted(numbers, key=lambda number: families[number])


def _length(families: Sequence[list[list[int]]], trees: Iterable[_Tree]) -> int:
    """How many tokens a row of these trees has."""
    numbers = _in_order(families, (number for tree in trees for number in tree.families))
    befores = [[], *(families[number][-1] for number in numbers)]
    return sum(_growth(before, families[number]) for before, number in zip(befores, numbers, strict=False))


def _written(families: Sequence[list[list[int]]], trees: Iterable[_Tree]) -> PrefixRow:
    row = PrefixRow()
    open_path: list[int] = []  # places of the sequence before; what comes may still see them
    before: Sequence[int] = []
    for number in _in_order(families, (number for tree in trees for number in tree.families)):
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
