"""Seeded sampling: keys belong to requests, draws follow the softmax, log-probs are those of the raw model."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from looptool_jax.inference.sampling import restrict, row_keys, sample

VOCAB = 8
draw = jax.jit(sample, static_argnames=("top_k", "top_p"))
LOGITS = jnp.array([2.0, -1.0, 0.5, 0.0, 1.5, -3.0, 1.0, 0.2])


def _draw(count: int, index: int, temperature: float, **limits) -> tuple[np.ndarray, np.ndarray]:
    keys = jax.random.bits(jax.random.key(7), (count, 2), jnp.uint32)
    rows = jnp.tile(LOGITS, (count, 1))
    drawn = draw(rows, keys, jnp.full(count, index), jnp.full(count, temperature), **limits)
    return np.asarray(drawn[0]), np.asarray(drawn[1])


def _chi_square(counts: np.ndarray, probabilities: np.ndarray) -> float:
    expected = counts.sum() * probabilities
    return float(((counts - expected) ** 2 / expected).sum())


def test_draws_follow_the_softmax_at_the_temperature():
    tokens, _ = _draw(20_000, 3, 0.7)
    probabilities = np.asarray(jax.nn.softmax(LOGITS / 0.7))
    counts = np.bincount(tokens, minlength=VOCAB)
    assert _chi_square(counts, probabilities) < 24.3  # chi-square with 7 degrees of freedom, p = 0.001
    assert _chi_square(counts, np.asarray(jax.nn.softmax(LOGITS))) > 100  # the test can tell temperatures apart


def test_consecutive_tokens_of_a_row_are_independent():
    first, _ = _draw(20_000, 0, 1.0)
    second, _ = _draw(20_000, 1, 1.0)
    probabilities = np.asarray(jax.nn.softmax(LOGITS))
    counts = np.bincount(first * VOCAB + second, minlength=VOCAB**2)
    assert _chi_square(counts, np.outer(probabilities, probabilities).ravel()) < 103.4  # 63 degrees, p = 0.001


def test_log_probs_are_raw_whatever_the_draw():
    expected = np.asarray(jax.nn.log_softmax(LOGITS))
    for temperature, limits in ((0.0, {}), (0.3, {}), (2.0, {"top_k": 3}), (1.0, {"top_p": 0.5})):
        tokens, logprobs = _draw(20_000, 0, temperature, **limits)
        np.testing.assert_allclose(logprobs, expected[tokens], atol=1e-6)


def test_temperature_zero_is_the_arg_max_beside_sampled_rows():
    keys = jax.random.bits(jax.random.key(0), (200, 2), jnp.uint32)
    temperature = jnp.tile(jnp.array([0.0, 1.0]), 100)
    tokens, _, lead = draw(jnp.tile(LOGITS, (200, 1)), keys, jnp.zeros(200, jnp.int32), temperature)
    assert set(np.asarray(tokens[::2]).tolist()) == {0}
    assert len(set(np.asarray(tokens[1::2]).tolist())) > 3
    first, second = np.sort(LOGITS)[[-1, -2]]
    np.testing.assert_allclose(lead, first - second, rtol=1e-6)


def test_a_row_draws_the_same_in_any_place_and_company():
    logits = jax.random.normal(jax.random.key(1), (12, 40))
    keys = jax.random.bits(jax.random.key(2), (12, 2), jnp.uint32)
    index, temperature = jnp.arange(12), jnp.linspace(0.0, 2.0, 12)
    tokens, logprobs, lead = draw(logits, keys, index, temperature)
    order = jnp.array([5, 11, 0, 7])
    picked = draw(logits[order], keys[order], index[order], temperature[order])
    np.testing.assert_array_equal(picked[0], tokens[order])
    np.testing.assert_array_equal(picked[1], logprobs[order])
    np.testing.assert_array_equal(picked[2], lead[order])


def test_row_keys_fold_the_group_index_into_the_request_key():
    requests = jnp.array([[0, 1], [4_000_000_000, 7]], jnp.uint32)
    keys = row_keys(requests, 5)
    for n in range(2):
        for g in range(5):
            folded = jax.random.fold_in(jax.random.wrap_key_data(requests[n], impl="threefry2x32"), g)
            np.testing.assert_array_equal(keys[n, g], jax.random.key_data(folded))
    assert len({tuple(key) for key in np.asarray(keys).reshape(-1, 2).tolist()}) == 10


@settings(max_examples=40, deadline=None)
@given(
    # distinct by rank, so that no two logits tie
    scores=st.permutations(range(VOCAB)).map(lambda ranks: [rank * 0.7 for rank in ranks]),
    top_k=st.integers(0, VOCAB + 2),
    top_p=st.floats(0.05, 1.0),
)
def test_restriction_keeps_the_top_k_and_then_the_nucleus(scores, top_k, top_p):
    kept = set(np.flatnonzero(np.isfinite(np.asarray(restrict(jnp.array(scores, jnp.float32), top_k, top_p)))))
    ranked = sorted(range(VOCAB), key=lambda token: -scores[token])[: top_k or VOCAB]
    mass = np.exp([scores[token] for token in ranked])
    mass_before = np.cumsum(mass / mass.sum()) - mass / mass.sum()
    if np.abs(mass_before - top_p).min() < 1e-5:
        return  # the border lies on a token, within float32
    assert kept == {token for token, before in zip(ranked, mass_before, strict=True) if before < top_p}
