"""The TPU kernel, interpreted on the CPU, computes what attention on trees computes."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from looptool_jax.models import decoder, splash
from looptool_jax.models.config import DecoderConfig
from looptool_jax.models.decoder import abstract_params, forward
from looptool_jax.parallel.mesh import MeshConfig, make_mesh
from looptool_jax.training.rows import Group, packed_rows

CFG = DecoderConfig("qwen3", 61, 32, 48, 2, 4, 2, 64, rope_theta=100.0)
TIME = 300


def random_groups(rng, count, prompt, answer, group=5):
    sizes = [(rng.integers(1, prompt), rng.integers(1, answer, rng.integers(1, group + 1))) for _ in range(count)]
    return [
        Group(rng.integers(0, 61, n).tolist(), [rng.integers(0, 61, m).tolist() for m in answers], [0.0] * len(answers))
        for n, answers in sizes
    ]


def visible(ends):
    place = np.arange(len(ends))
    return (place[None] <= place[:, None]) & (place[:, None] < ends[None])


@settings(deadline=None, max_examples=20)
@example(seed=0, time=8320)
@given(seed=st.integers(0, 10_000), time=st.sampled_from([256, 1024, 2048]))
def test_a_number_says_what_a_query_sees(seed, time):
    rng = np.random.default_rng(seed)
    align = splash.alignment(time)
    for micro in packed_rows(random_groups(rng, 12, time // 4, time // 10), time, 1, align).micro_batches:
        ends = micro.ends[0]
        segments, codes = (np.asarray(x) for x in splash._encode(jnp.asarray(ends), align))
        sees = splash._sees(align)(codes[:, None], np.arange(time)[None]) & (segments[:, None] == segments)
        there = ends > 0
        np.testing.assert_array_equal(sees[there], visible(ends)[there])

        computed, keys, queries = splash._blocks(jnp.asarray(ends), 128)
        computed, number = np.asarray(computed[0]) > 0, np.arange(time // 128)
        needed = visible(ends).reshape(len(number), 128, -1, 128).any(axis=(1, 3))
        assert (computed >= needed).all() and computed.diagonal().all()
        assert computed.sum() == (needed | np.eye(len(number), dtype=bool)).sum()
        keys, queries = np.asarray(keys[0]), np.asarray(queries[0])
        assert (keys == number)[computed].all() and (queries == number[:, None])[computed].all()
        assert computed[number[:, None], keys].all() and computed[queries, number].all(), "nothing else is fetched"


def test_a_long_row_still_fits_into_a_number():
    time, align = 40_960, splash.alignment(40_960)
    prompt = 114 * align.trunk
    ends = np.zeros(time, np.int32)
    ends[:prompt] = time
    ends[prompt : prompt + 10], ends[prompt + 10 :] = prompt + 10, time
    assert splash.LONGEST_BRANCH - 250 < time - prompt - 10 <= splash.LONGEST_BRANCH
    _, codes = splash._encode(jnp.asarray(ends), align)
    for query in (0, prompt - 1, prompt, prompt + 9, prompt + 10, time - 1):
        sees = splash._sees(align)(codes[query], np.arange(time))
        np.testing.assert_array_equal(sees, (np.arange(time) <= query) & (query < ends))
    with pytest.raises(ValueError, match="up to 131072 tokens, not 131073"):
        splash.alignment(131_073)


@pytest.fixture(autouse=True)
def without_a_tpu(monkeypatch):
    monkeypatch.setattr(decoder, "splash_attend", partial(splash.splash_attend, interpret=True))


@pytest.fixture(scope="module")
def params():
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: jnp.asarray((leaf.ndim == 1) + 0.3 * rng.normal(size=leaf.shape), jnp.float32),
        abstract_params(CFG),
    )


def loss(attention, params, micro):
    hidden, _ = forward(params, CFG, micro.tokens, micro.positions, micro.ends, attention=attention)
    weights = jnp.sin(jnp.arange(hidden.size)).reshape(hidden.shape)
    return jnp.sum(jnp.where(micro.ends[..., None] > 0, hidden * weights, 0.0))


@pytest.mark.parametrize("answers", [5, 1], ids=["groups", "samples"])
def test_value_and_gradient_equal_plain_attention(answers, params):
    groups = random_groups(np.random.default_rng(1), 5, 120, 30, answers)
    micro, *_ = packed_rows(groups, TIME, 2, splash.alignment(TIME)).micro_batches
    value, gradient = jax.jit(jax.value_and_grad(partial(loss, "xla")))(params, micro)
    found, found_gradient = jax.jit(jax.value_and_grad(partial(loss, "splash")))(params, micro)
    assert abs(found - value) <= 1e-5 * abs(value)
    for path, expected in jax.tree.leaves_with_path(gradient):
        difference = jnp.linalg.norm(dict(jax.tree.leaves_with_path(found_gradient))[path] - expected)
        assert difference <= 1e-5 * jnp.linalg.norm(expected), path


@pytest.mark.parametrize("rows", [4, 3], ids=["rows divide", "rows do not divide"])
def test_on_a_mesh(rows, params):
    tokens = np.random.default_rng(2).integers(0, 61, (rows, 100), np.int32)
    positions, ends = jnp.broadcast_to(jnp.arange(100), tokens.shape), jnp.full_like(tokens, 100)
    expected = jax.jit(partial(forward, attention="xla"), static_argnums=1)(params, CFG, tokens, positions, ends)
    with jax.set_mesh(make_mesh(MeshConfig(2, 2, 2))):
        run = jax.jit(partial(forward, attention="splash"), static_argnums=1)
        found = run(params, CFG, tokens, positions, ends)
    np.testing.assert_allclose(found[0], expected[0], atol=2e-5)
