import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from looptool_jax.models.attention import Block, attend


def naive(q, blocks):
    """Repeats everything, concatenates, one dense softmax."""
    n, g, t, heads, h = q.shape
    keys, values, masks = [], [], []
    for k, v, mask in blocks:
        shared = k.ndim == 4
        keys.append(jnp.broadcast_to(k[:, None], (n, g, *k.shape[1:])) if shared else k)
        values.append(jnp.broadcast_to(v[:, None], (n, g, *v.shape[1:])) if shared else v)
        masks.append(jnp.broadcast_to(mask, (n, g, t, keys[-1].shape[2])))
    per_kv = heads // keys[0].shape[-2]
    k = jnp.repeat(jnp.concatenate(keys, 2), per_kv, axis=3)
    v = jnp.repeat(jnp.concatenate(values, 2), per_kv, axis=3)
    scores = jnp.einsum("ngthc,ngshc->nghts", q, k) / np.sqrt(h)
    weights = jax.nn.softmax(jnp.where(jnp.concatenate(masks, 3)[:, :, None], scores, -jnp.inf), axis=-1)
    return jnp.einsum("nghts,ngshc->ngthc", weights, v)


def example(seed, n, g, t, p, kv_heads, per_kv, h=8, scale=1.0):
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    valid = jnp.asarray(np.arange(p) < rng.integers(0, p + 1, (n, 1)))
    prompt = Block(normal(n, p, kv_heads, h), normal(n, p, kv_heads, h), valid[:, None, None])
    causal = jnp.asarray(np.tri(t, dtype=bool))[None, None]
    own = Block(normal(n, g, t, kv_heads, h), normal(n, g, t, kv_heads, h), causal)
    return scale * normal(n, g, t, kv_heads * per_kv, h), [prompt, own]


sizes = st.tuples(*(st.integers(1, 3) for _ in range(3)), st.integers(1, 6), st.integers(1, 2), st.integers(1, 3))


@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, 1000), size=sizes, scale=st.sampled_from([0.1, 1.0, 30.0]))
def test_equals_one_softmax_over_everything(seed, size, scale):
    q, blocks = example(seed, *size, scale=scale)
    np.testing.assert_allclose(jax.jit(attend)(q, blocks), jax.jit(naive)(q, blocks), rtol=2e-5, atol=2e-5)


def test_one_block_with_many_segments():
    q, blocks = example(5, n=2, g=1, t=6, p=6, kv_heads=2, per_kv=2)
    segments = jnp.array([[1, 1, 2, 2, 2, 0], [1, 1, 1, 1, 0, 0]])
    mask = (segments[:, :, None] == segments[:, None]) & jnp.tri(6, dtype=bool)
    only = [blocks[0]._replace(mask=mask[:, None])]
    np.testing.assert_allclose(jax.jit(attend)(q, only), jax.jit(naive)(q, only), rtol=2e-5, atol=2e-5)


def test_bfloat16_stays_bfloat16_and_close():
    q, blocks = example(4, n=2, g=2, t=4, p=8, kv_heads=2, per_kv=2)
    half = jax.tree.map(lambda x: x if x.dtype == bool else x.astype(jnp.bfloat16), (q, blocks))
    out = jax.jit(attend)(*half)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(out.astype(jnp.float32), jax.jit(naive)(q, blocks), atol=0.05)
