"""Rows of a GRPO update: what stands where, who sees whom, and how little is padding."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from looptool_jax.models.decoder import GroupLayout
from looptool_jax.training.rows import Group, Update, fixed_rows, packed_rows

TWO = [Group([5, 6], [[1, 2], [3]], [1.0, -1.0]), Group([7], [[4], [9, 8, 9]], [0.5, 2.0])]


def test_packed():
    update = packed_rows(TWO, 12, 1)
    [micro] = update.micro_batches
    assert micro.tokens.tolist() == [[5, 6, 1, 2, 3, 7, 4, 9, 8, 9, 0, 0]]
    assert micro.positions.tolist() == [[0, 1, 2, 3, 2, 0, 1, 1, 2, 3, 0, 0]]
    assert micro.ends.tolist() == [[5, 5, 4, 4, 5, 10, 7, 10, 10, 10, 0, 0]]
    assert micro.sources.tolist() == [[1, 2, 1, 5, 5, 7, 8, 0]]  # two tokens are a piece, and seven are learnt from
    assert micro.targets.tolist() == [[1, 2, 3, 4, 9, 8, 9, 0]]
    assert micro.answers.tolist() == [[0, 0, 1, 2, 3, 3, 3, 0]]
    assert micro.advantages.tolist() == [[1, 1, -1, 0.5, 2, 2, 2, 0]]
    np.testing.assert_allclose(micro.token_shares * 7, [[1] * 7 + [0]], rtol=1e-6)
    np.testing.assert_allclose(micro.answer_shares * 4, [[1 / 2, 1 / 2, 1, 1, 1 / 3, 1 / 3, 1 / 3, 0]], rtol=1e-6)
    assert (update.answer_tokens, update.prompt_tokens) == (7, 3)


def test_at_fixed_places():
    update = fixed_rows(TWO, GroupLayout(3, 3), micro_tokens=1, shards=1)
    first, second = update.micro_batches
    assert first.tokens.tolist() == [[5, 6, 0, 1, 2, 0, 3, 0, 0]]
    assert first.positions.tolist() == [[0, 1, 0, 2, 3, 0, 2, 0, 0]]
    assert first.ends.tolist() == [[9, 9, 0, 5, 5, 0, 7, 0, 0]]
    assert second.sources.tolist() == [[0, 0, 6, 7, 0, 0]] and second.targets.tolist() == [[4, 9, 8, 9, 0, 0]]
    assert first.layout == GroupLayout(3, 3) and (update.answer_tokens, update.prompt_tokens) == (7, 3)
    [both] = fixed_rows(TWO, GroupLayout(3, 3), micro_tokens=18, shards=1).micro_batches
    assert both.tokens.shape == (2, 9)
    for layout in (GroupLayout(1, 3), GroupLayout(2, 2)):
        with pytest.raises(ValueError, match="longer than the longest"):
            fixed_rows(TWO, layout, 18, 1)


def test_fixed_places_are_few_and_short_ones_are_not_padded_to_the_longest():
    groups = [Group([1] * prompt, [[2] * answer] * 4, [0.0] * 4) for prompt in (5, 40, 300) for answer in (3, 33, 90)]
    update = fixed_rows(groups, GroupLayout(500, 100), 1, 1)
    layouts = {micro.layout for micro in update.micro_batches}
    assert layouts == {GroupLayout(p, a) for p in (32, 64, 500) for a in (32, 64, 100)}
    assert sum(micro.token_shares.sum() for micro in update.micro_batches) == pytest.approx(1, rel=1e-5)


def test_a_prompt_that_fits_no_row_is_an_error():
    with pytest.raises(ValueError, match="a prompt of 2 tokens with an answer of 2 is longer than a row of 3"):
        packed_rows(TWO, 3, 1)


def contents(update: Update) -> list[tuple]:
    """Every answer with what it sees: prompt, answer, advantage; read from the arrays alone."""
    found = []
    for micro in update.micro_batches:
        for row in range(len(micro.tokens)):
            tokens, ends = micro.tokens[row], micro.ends[row]
            learnt = micro.token_shares[row] > 0
            for number in np.unique(micro.answers[row][learnt]):
                mine = learnt & (micro.answers[row] == number)
                sources, targets = micro.sources[row][mine], micro.targets[row][mine]
                seen = [j for j in range(sources[0] + 1) if sources[0] < ends[j]]
                assert micro.positions[row][seen].tolist() == list(range(len(seen)))
                for source, before in zip(sources[1:], range(len(sources) - 1), strict=True):
                    sees = [j for j in range(source + 1) if source < ends[j]]
                    assert tokens[sees].tolist() == [*tokens[seen], *targets[: before + 1]]
                found.append((tuple(tokens[seen]), tuple(targets), float(micro.advantages[row][mine][0])))
    return sorted(found)


@settings(deadline=None)
@given(seed=st.integers(0, 10_000), micro_tokens=st.integers(16, 80), shards=st.integers(1, 4))
def test_nothing_is_lost_and_every_answer_sees_its_prompt_and_itself(seed, micro_tokens, shards):
    rng = np.random.default_rng(seed)
    groups = [
        Group(
            rng.integers(1, 60, rng.integers(1, 10)).tolist(),
            [rng.integers(1, 60, rng.integers(1, 7)).tolist() for _ in range(rng.integers(1, 17))],
            (),
        )
        for _ in range(rng.integers(1, 9))
    ]
    groups = [g._replace(advantages=np.float32(rng.normal(size=len(g.answers))).tolist()) for g in groups]
    update = packed_rows(groups, micro_tokens, shards)
    assert {micro.tokens.shape for micro in update.micro_batches} == {(shards, micro_tokens)}
    expected = [
        (tuple(group.prompt), tuple(answer), advantage)
        for group in groups
        for answer, advantage in zip(group.answers, group.advantages, strict=True)
    ]
    assert contents(update) == sorted(expected)
    assert sum(micro.token_shares.sum() for micro in update.micro_batches) == pytest.approx(1, rel=1e-5)
    assert sum(micro.answer_shares.sum() for micro in update.micro_batches) == pytest.approx(1, rel=1e-5)
