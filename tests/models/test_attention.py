import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from looptool_jax.models import attention
from looptool_jax.models.attention import KV, Cache, attend

LAYERS, H = 3, 8


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(attention, "BLOCK_BYTES", 1)
    monkeypatch.setattr(attention, "SMALLEST_BLOCK", 4)


def naive(q, own, caches, layer):
    """Repeats everything, concatenates, one dense softmax in float64."""
    n, g, t, heads, h = q.shape
    keys, values, seen = [own.k], [own.v], [np.broadcast_to(np.tri(t, dtype=bool), (n, g, t, t))]
    for (k, v), length, _ in caches:
        k, v = (np.asarray(x[layer], np.float64).swapaxes(-3, -2) for x in (k, v))
        every = (n, g, *k.shape[-3:])
        keys.append(np.broadcast_to(k[:, None], every) if k.ndim == 4 else k)
        values.append(np.broadcast_to(v[:, None], every) if v.ndim == 4 else v)
        visible = np.arange(every[2]) < np.asarray(length)[..., None, None]
        seen.append(np.broadcast_to(visible, (n, g, t, every[2])))
    per_kv = heads // keys[0].shape[-2]
    k, v = (np.repeat(np.concatenate(each, 2), per_kv, axis=3) for each in (keys, values))
    scores = np.einsum("ngthc,ngshc->ngths", np.asarray(q, np.float64), k) / np.sqrt(h)
    scores = np.where(np.concatenate(seen, 3)[:, :, :, None], scores, -np.inf)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return np.einsum("ngths,ngshc->ngthc", weights / weights.sum(axis=-1, keepdims=True), v)


def example(seed, n, g, t, p, r, kv_heads, per_kv, scale=1.0):
    """Queries of t tokens, their keys and values, and the caches of prompts and answers, of any length down to 0."""
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    def cache(time, rows, length):
        pair = (normal(LAYERS, *rows, kv_heads, time, H) for _ in range(2))
        return Cache(KV(*pair), jnp.asarray(length), jnp.asarray(length.max()))

    caches = [cache(p, (n,), rng.integers(0, p + 1, (n, 1))), cache(r, (n, g), rng.integers(0, r + 1, (n, g)))]
    own = KV(normal(n, g, t, kv_heads, H), normal(n, g, t, kv_heads, H))
    return scale * normal(n, g, t, kv_heads * per_kv, H), own, caches


sizes = st.tuples(*(st.integers(1, 3) for _ in range(3)), *(st.integers(1, 19) for _ in range(2)))


@settings(max_examples=10, deadline=None)
@given(
    seed=st.integers(0, 1000),
    size=sizes,
    heads=st.tuples(st.integers(1, 2), st.integers(1, 3)),
    scale=st.sampled_from([0.1, 1.0, 30.0]),
)
def test_equals_one_softmax_over_everything(seed, size, heads, scale):
    q, own, caches = example(seed, *size, *heads, scale=scale)
    for layer in range(LAYERS):
        found = jax.jit(attend)(q, own, caches, layer)
        np.testing.assert_allclose(found, naive(q, own, caches, layer), rtol=2e-5, atol=2e-5)


def test_how_far_others_reach_changes_no_bit():
    q, own, caches = example(3, n=3, g=2, t=2, p=18, r=9, kv_heads=2, per_kv=2)
    short = [each._replace(length=jnp.minimum(each.length, 5), reach=jnp.int32(5)) for each in caches]
    long = [each._replace(reach=jnp.int32(each.kv.k.shape[-2])) for each in short]
    run = jax.jit(attend)
    np.testing.assert_array_equal(run(q, own, short, 1), run(q, own, long, 1))
    poisoned = [each._replace(kv=jax.tree.map(lambda x: x.at[..., 8:, :].set(jnp.nan), each.kv)) for each in short]
    np.testing.assert_array_equal(run(q, own, short, 1), run(q, own, poisoned, 1))  # what is behind is not read


def test_bfloat16_stays_bfloat16_and_close():
    q, own, caches = example(4, n=2, g=2, t=1, p=12, r=8, kv_heads=2, per_kv=2)
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16) if x.dtype == jnp.float32 else x, (q, own, caches))
    out = jax.jit(attend)(*half, 0)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(out.astype(jnp.float32), naive(q, own, caches, 0), atol=0.05)
