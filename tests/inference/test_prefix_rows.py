"""Rows of sequences that begin alike: every sequence is there whole, and nothing stands twice that need not."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from looptool_jax.inference.prefix_rows import prefix_rows

sequences = st.lists(st.integers(1, 3), min_size=1, max_size=9)
families = st.lists(st.lists(sequences, min_size=1, max_size=3), max_size=12)


def test_a_dialogue_stands_once():
    history = [7, 7, 1, 7, 2]
    [row] = prefix_rows([[history[:2]], [history[:4]], [history]], 20)
    assert row.tokens == history and row.ends == [5] * 5 and row.positions == list(range(5))
    [row] = prefix_rows([[[7, 7, 9]], [history]], 20)
    assert row.tokens == [7, 7, 9, 1, 7, 2] or row.tokens == [7, 7, 1, 7, 2, 9]
    assert len(row.tokens) == 6


@given(families)
def test_every_sequence_sees_itself_and_nothing_else(families):
    rows = prefix_rows(families, 40)
    found = {}
    for row in rows:
        assert len(row.tokens) == len(row.positions) == len(row.ends) <= 40
        for key, path in row.paths.items():
            assert [row.tokens[place] for place in path] == families[key[0]][key[1]]
            assert [row.positions[place] for place in path] == list(range(len(path)))
            for i in range(len(path)):
                seen = [j for j in range(path[i] + 1) if path[i] < row.ends[j]]
                assert seen == path[: i + 1].tolist()
            found[key] = row
    assert set(found) == {(f, m) for f, members in enumerate(families) for m in range(len(members))}
    for f, members in enumerate(families):
        assert len({id(found[f, m]) for m in range(len(members))}) == 1, "a family lies in one row"


@given(st.lists(st.lists(sequences, min_size=1, max_size=1), min_size=1, max_size=20))
def test_a_common_beginning_stands_once(families):
    [row] = prefix_rows(families, 10_000)
    prefixes = {tuple(s[: i + 1]) for [s] in families for i in range(len(s))}
    assert len(row.tokens) == len(prefixes)


def test_dialogues_are_not_cut():
    """Two turns each: 6 + 3 tokens, and in sorted order the second dialogue would begin in the first one's row."""
    dialogues = [[[n, *range(10, 15)], [n, *range(10, 18)]] for n in (1, 2, 3)]
    rows = prefix_rows([[turn] for turns in dialogues for turn in turns], 17)
    assert [len(row.tokens) for row in rows] == [9, 9, 9]


def test_what_begins_alike_fits_where_the_beginning_is():
    alike = [[[*range(20), n, *range(30, 54)]] for n in range(1, 9)]  # 20 in common, 25 of their own
    assert len(prefix_rows(alike, 20 + 4 * 25)) == 2


def test_what_fits_no_row_is_an_error():
    with pytest.raises(ValueError, match="family 1 takes 5 tokens; a row holds 4"):
        prefix_rows([[[1, 2]], [[1, 2, 3], [1, 2, 4, 5]]], 4)
    assert np.array([len(row.tokens) for row in prefix_rows([[[1, 2, 3], [1, 2, 4]]], 4)]).tolist() == [4]
