"""Rows of a GRPO update: what stands where, who sees whom, and how little is padding."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from looptool_jax.models.config import ModelError
from looptool_jax.models.splash import Alignment
from looptool_jax.training.rows import Group, Update, alignment, packed_rows

TWO = [Group([5, 6], [[1, 2], [3]], [1.0, -1.0]), Group([7], [[4], [9, 8, 9]], [0.5, 2.0])]


def test_packed():
    update = packed_rows(TWO, 12, 1)
    [micro] = update.micro_batches
    assert micro.tokens.tolist() == [[5, 6, 1, 2, 3, 7, 4, 9, 8, 9, 0, 0]]
    assert micro.positions.tolist() == [[0, 1, 2, 3, 2, 0, 1, 1, 2, 3, 0, 0]]
    assert micro.ends.tolist() == [[5, 5, 4, 4, 5, 10, 7, 10, 10, 10, 0, 0]]
    assert micro.sources.tolist() == [[1, 2, 1, 5, 5, 7, 8, *[0] * 5]]
    assert micro.targets.tolist() == [[1, 2, 3, 4, 9, 8, 9, *[0] * 5]]
    assert micro.answers.tolist() == [[0, 0, 1, 2, 3, 3, 3, *[0] * 5]]
    assert micro.advantages.tolist() == [[1, 1, -1, 0.5, 2, 2, 2, *[0] * 5]]
    np.testing.assert_allclose(micro.token_shares * 7, [[1] * 7 + [0] * 5], rtol=1e-6)
    np.testing.assert_allclose(
        micro.answer_shares * 4, [[1 / 2, 1 / 2, 1, 1, 1 / 3, 1 / 3, 1 / 3, *[0] * 5]], rtol=1e-6
    )
    assert (update.answer_tokens, update.prompt_tokens) == (7, 3)


@pytest.mark.parametrize("micro_tokens", [5, 6, 12, 16])
def test_the_engine_log_probs_stand_beside_their_tokens(micro_tokens):
    """Also where a group is cut between its answers; and nowhere where those of one group are not known."""
    known = [group._replace(logprobs=[[-token / 10 for token in ids] for ids in group.answers]) for group in TWO]
    for micro in packed_rows(known, micro_tokens, 1).micro_batches:
        there = micro.token_shares > 0
        np.testing.assert_allclose(micro.rollout_logprobs, np.where(there, -micro.targets / 10, 0), rtol=1e-6)
    update = packed_rows([known[0], TWO[1]], micro_tokens, 1)
    assert all(micro.rollout_logprobs is None for micro in update.micro_batches)


def test_aligned():
    """Prompts end at multiples of 4, answers start at multiples of 2."""
    align = Alignment(4, 2)
    [micro] = packed_rows(TWO, 16, 1, align).micro_batches
    assert micro.tokens.tolist() == [[0, 0, 5, 6, 1, 2, 3, 7, 4, 0, 9, 8, 9, 0, 0, 0]]
    assert micro.positions.tolist() == [[0, 0, 0, 1, 2, 3, 2, 0, 1, 0, 1, 2, 3, 0, 0, 0]]
    assert micro.ends.tolist() == [[0, 0, 7, 7, 6, 6, 7, 13, 9, 0, 13, 13, 13, 0, 0, 0]]
    assert micro.sources.tolist() == [[3, 4, 3, 7, 7, 10, 11, *[0] * 9]]
    first, second = packed_rows(TWO, 12, 1, align).micro_batches
    assert first.tokens.tolist() == [[0, 0, 5, 6, 1, 2, 3, 0, 0, 0, 0, 0]]
    assert second.tokens.tolist() == [[0, 0, 0, 7, 4, 0, 9, 8, 9, 0, 0, 0]]
    with pytest.raises(ValueError, match="longer than a row of 6"):
        packed_rows(TWO, 6, 1, align)


def test_what_splash_attention_cannot_compute_is_an_error():
    assert alignment("xla", 10**6, 10**5, 10**5) == Alignment()
    assert alignment("splash", 16384, 10_000, 1024) == Alignment(130, 2)
    for sizes, message in (
        ((600_000, 10, 10), r"train.grpo.micro_tokens: splash attention takes up to 131072 tokens, not 600000"),
        ((16384, 10, 5000), r"train.answers.answer_tokens: splash attention takes up to 4096 tokens, not 5000"),
        ((1024, 501, 521), r"train.grpo.micro_tokens: splash attention needs 1025 places .* not 1024"),
    ):
        with pytest.raises(ModelError, match=message):
            alignment("splash", *sizes)


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
@given(
    seed=st.integers(0, 10_000),
    micro_tokens=st.integers(24, 80),
    shards=st.integers(1, 4),
    align=st.sampled_from([Alignment(), Alignment(8, 4)]),
)
def test_nothing_is_lost_and_every_answer_sees_its_prompt_and_itself(seed, micro_tokens, shards, align):
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
    update = packed_rows(groups, micro_tokens, shards, align)
    assert {micro.tokens.shape for micro in update.micro_batches} == {(shards, micro_tokens)}
    expected = [
        (tuple(group.prompt), tuple(answer), advantage)
        for group in groups
        for answer, advantage in zip(group.answers, group.advantages, strict=True)
    ]
    assert contents(update) == sorted(expected)
    assert sum(micro.token_shares.sum() for micro in update.micro_batches) == pytest.approx(1, rel=1e-5)
    assert sum(micro.answer_shares.sum() for micro in update.micro_batches) == pytest.approx(1, rel=1e-5)
