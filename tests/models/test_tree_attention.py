"""Attention on trees against one dense softmax, forward and backward."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from looptool_jax.models import tree_attention
from looptool_jax.models.tree_attention import tree_attend
from looptool_jax.parallel.mesh import MeshConfig, make_mesh

ROWS, TIME, HEADS, KV_HEADS, DIM = 2, 50, 4, 2, 8


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(tree_attention, "BLOCK", 16)  # does not divide the rows


def tree(rng: np.random.Generator, start: int, end: int) -> np.ndarray:
    """Ends of a random forest on the places from `start` to `end`, written depth first."""
    ends = np.zeros(end - start, np.int32)
    while start < end:
        trunk, stop = int(rng.integers(1, 9)), int(rng.integers(start + 1, end + 1))
        trunk = min(trunk, stop - start)
        at = start - end + len(ends)
        ends[at : at + trunk] = stop
        ends[at + trunk : at + stop - start] = tree(rng, start + trunk, stop)
        start = stop
    return ends


def example(seed: int):
    rng = np.random.default_rng(seed)
    sizes = [(ROWS, TIME, heads, DIM) for heads in (HEADS, KV_HEADS, KV_HEADS, HEADS)]
    q, k, v, target = (jnp.asarray(rng.normal(size=size), jnp.float32) for size in sizes)
    ends = np.zeros((ROWS, TIME), np.int32)
    for row in ends:
        filled = int(rng.integers(1, TIME + 1))
        row[:filled] = tree(rng, 0, filled)
    return (2 * q, k, v), jnp.asarray(ends), target


def dense(q, k, v, ends):
    place = np.arange(TIME)
    seen = (place <= place[:, None]) & (place[:, None] < ends[:, None])
    k, v = (jnp.repeat(x, HEADS // KV_HEADS, axis=2) for x in (k, v))
    scores = jnp.where(seen[:, None], jnp.einsum("rthc,rshc->rhts", q, k) / DIM**0.5, -1e30)
    return jnp.einsum("rhts,rshc->rthc", jax.nn.softmax(scores), v)


def loss(attention, tensors, ends, target):
    out = attention(*tensors, ends)
    return jnp.sum(jnp.where(ends[..., None, None] > 0, out * target, 0.0)), out


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_value_and_gradient_equal_those_of_a_dense_softmax(seed):
    tensors, ends, target = example(seed)
    run = jax.jit(jax.grad(loss, argnums=1, has_aux=True), static_argnums=0)
    found_gradient, found = run(tree_attend, tensors, ends, target)
    gradient, expected = run(dense, tensors, ends, target)
    there = np.asarray(ends) > 0
    np.testing.assert_allclose(found[there], expected[there], atol=2e-5)
    assert bool(jnp.isfinite(found).all())
    for ours, theirs in zip(found_gradient, gradient, strict=True):
        assert jnp.linalg.norm(ours - theirs) <= 1e-5 * jnp.linalg.norm(theirs) + 1e-5  # zero where one token is seen


def test_pairs_of_blocks_that_do_not_see_each_other_are_left_out():
    prompt, answers = 32, 4  # two blocks of a prompt, then one block for each answer
    own = prompt + 16 * (1 + np.arange(answers)).repeat(16)
    ends = np.concatenate([np.full(prompt, prompt + 16 * answers), own]).reshape(-1, 16)
    pairs = tree_attention._pairs(jnp.asarray(ends))
    seen = {(int(q), int(k)) for q, k in zip(pairs.query[: pairs.seen], pairs.key[: pairs.seen], strict=True)}
    answered = {(2 + g, k) for g in range(answers) for k in (0, 1, 2 + g)}
    assert seen == {(0, 0), (1, 0), (1, 1)} | answered


def test_bfloat16_stays_bfloat16_and_close():
    tensors, ends, target = example(1)
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), tensors)
    gradient, found = jax.jit(jax.grad(loss, argnums=1, has_aux=True), static_argnums=0)(
        tree_attend, half, ends, target
    )
    assert {x.dtype for x in (found, *gradient)} == {jnp.dtype(jnp.bfloat16)}
    there = np.asarray(ends) > 0
    np.testing.assert_allclose(found.astype(jnp.float32)[there], dense(*tensors, ends)[there], atol=0.1)


@pytest.mark.parametrize("mesh", [MeshConfig(2, 1, 2), MeshConfig(1, 4, 1), MeshConfig(1, 1, 2)], ids=str)
def test_on_a_mesh(mesh):
    """Heads are split, and rows that divide; nothing changes."""
    tensors, ends, _ = example(2)
    expected = jax.jit(tree_attend)(*tensors, ends)
    mesh = make_mesh(mesh, jax.devices()[: mesh.data * mesh.fsdp * mesh.tensor])
    with jax.set_mesh(mesh):
        found = jax.jit(tree_attend)(*tensors, ends)
    np.testing.assert_allclose(found, expected, atol=1e-6)
