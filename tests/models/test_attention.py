import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from looptool_jax.models import attention
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


def test_gradients_equal_those_of_the_dense_softmax():
    q, blocks = example(3, n=2, g=3, t=4, p=5, kv_heads=2, per_kv=2)
    target = jax.random.normal(jax.random.key(9), q.shape)

    def loss(attention):
        def run(q, tensors):
            parts = tuple(Block(*kv, block.mask) for kv, block in zip(tensors, blocks, strict=True))
            return jnp.sum(attention(q, parts) * target)

        return jax.jit(jax.grad(run, argnums=(0, 1)))(q, [(block.k, block.v) for block in blocks])

    for ours, theirs in zip(jax.tree.leaves(loss(attend)), jax.tree.leaves(loss(naive)), strict=True):
        assert jnp.linalg.norm(ours - theirs) <= 1e-5 * jnp.linalg.norm(theirs)
        assert jnp.linalg.norm(theirs) > 0.1


@pytest.mark.parametrize("group", [2, 3])
def test_chunks_of_queries_change_nothing(group, monkeypatch):
    q, blocks = example(6, n=2, g=group, t=192, p=10, kv_heads=1, per_kv=2)
    staircase = jnp.arange(10) <= jnp.arange(192)[:, None] % 9
    blocks.append(blocks[0]._replace(mask=staircase[None, None]))

    def both(q, tensors):
        out = attention.attend(q, [Block(*kv, block.mask) for kv, block in zip(tensors, blocks, strict=True)])
        return jnp.sum(out * jnp.sin(jnp.arange(out.size).reshape(out.shape))), out

    def run(*, in_chunks):
        gradient = jax.grad(lambda *args: both(*args), argnums=(0, 1), has_aux=True)
        args = q, [block[:2] for block in blocks]
        assert ("scan" in str(jax.make_jaxpr(gradient)(*args))) == in_chunks
        return jax.jit(gradient)(*args)

    whole, expected = run(in_chunks=False)
    np.testing.assert_allclose(expected, naive(q, blocks), rtol=2e-5, atol=2e-5)
    monkeypatch.setattr(attention, "QUERIES_AT_ONCE", 128)
    chunked, found = run(in_chunks=True)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    for a, b in zip(jax.tree.leaves(chunked), jax.tree.leaves(whole), strict=True):
        assert jnp.linalg.norm(a - b) <= 1e-5 * jnp.linalg.norm(b)


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
    grads = jax.jit(jax.grad(lambda q: attend(q, half[1]).astype(jnp.float32).sum()))(half[0])
    assert grads.dtype == jnp.bfloat16 and bool(jnp.isfinite(grads.astype(jnp.float32)).all())
