"""The TPU kernel, interpreted on the CPU, computes what attention on trees computes."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from looptool_jax.models import decoder, splash
from looptool_jax.models.config import DecoderConfig
from looptool_jax.models.decoder import GroupLayout, abstract_params, forward
from looptool_jax.parallel.mesh import MeshConfig, make_mesh

CFG = DecoderConfig("qwen3", 61, 32, 48, 2, 4, 2, 64, rope_theta=100.0)
N, G, P, R = 2, 3, 100, 40
LENGTHS = jnp.array([P, 37])


@pytest.fixture(autouse=True)
def without_a_tpu(monkeypatch):
    monkeypatch.setattr(decoder, "splash_attend", partial(splash.splash_attend, interpret=True))


@pytest.fixture(scope="module")
def example():
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: jnp.asarray((leaf.ndim == 1) + 0.3 * rng.normal(size=leaf.shape), jnp.float32),
        abstract_params(CFG),
    )
    prompts, answers = (jnp.asarray(rng.integers(0, 61, shape, np.int32)) for shape in ((N, P), (N, G, R)))
    return params, prompts, answers, jnp.asarray(rng.normal(size=(N, G, R, CFG.hidden_size)), jnp.float32)


def group_loss(attention, params, prompts, answers, target):
    tokens = jnp.concatenate([prompts, answers.reshape(N, -1)], axis=1)
    places = (LENGTHS[:, None, None] + jnp.arange(R) + jnp.zeros((N, G, R), jnp.int32)).reshape(N, -1)
    positions = jnp.concatenate([jnp.broadcast_to(jnp.arange(P), (N, P)), places], axis=1)
    prompt_ends = jnp.where(jnp.arange(P) < LENGTHS[:, None], P + G * R, 0)
    answer_ends = jnp.broadcast_to(jnp.repeat(P + R * (1 + jnp.arange(G)), R), (N, G * R))
    ends = jnp.concatenate([prompt_ends, answer_ends], axis=1)
    hidden, _ = forward(params, CFG, tokens, positions, ends, attention=attention, group=GroupLayout(P, R))
    return jnp.sum(hidden[:, P:].reshape(target.shape) * target)


def packed_loss(attention, params, prompts, answers, target):
    ends = jnp.where(jnp.arange(P) < 60, 60, jnp.where(jnp.arange(P) < 90, 90, 0)) * jnp.ones((N, 1), jnp.int32)
    positions = jnp.where(jnp.arange(P) < 60, jnp.arange(P), jnp.arange(P) - 60) * jnp.ones((N, 1), jnp.int32)
    hidden, _ = forward(params, CFG, prompts, positions, ends, attention=attention)
    return jnp.sum(jnp.where(ends[..., None] > 0, hidden, 0.0) ** 3)


@pytest.mark.parametrize("loss", [group_loss, packed_loss])
def test_value_and_gradient_equal_plain_attention(loss, example):
    value, gradient = jax.jit(jax.value_and_grad(partial(loss, "xla")))(*example)
    found, found_gradient = jax.jit(jax.value_and_grad(partial(loss, "splash")))(*example)
    assert abs(found - value) <= 1e-5 * abs(value)
    for path, expected in jax.tree.leaves_with_path(gradient):
        difference = jnp.linalg.norm(dict(jax.tree.leaves_with_path(found_gradient))[path] - expected)
        assert difference <= 1e-5 * jnp.linalg.norm(expected), path


def test_the_mask_is_that_of_shared_prompts():
    seen = splash.GroupMask(12, 4, 3)[:, :]
    for q in range(12):
        for kv in range(12):
            same = q >= 4 and kv >= 4 and (q - 4) // 3 == (kv - 4) // 3
            assert seen[q, kv] == (kv <= q and (kv < 4 or same)), (q, kv)


@pytest.mark.parametrize("rows", [4, 3], ids=["rows divide", "rows do not divide"])
def test_on_a_mesh(rows, example):
    params, prompts, *_ = example
    tokens = jnp.tile(prompts, (2, 1))[:rows]
    positions, ends = jnp.broadcast_to(jnp.arange(P), tokens.shape), jnp.full_like(tokens, P)
    expected = jax.jit(partial(forward, attention="xla"), static_argnums=1)(params, CFG, tokens, positions, ends)
    with jax.set_mesh(make_mesh(MeshConfig(2, 2, 2))):
        run = jax.jit(partial(forward, attention="splash"), static_argnums=1)
        found = run(params, CFG, tokens, positions, ends)
    np.testing.assert_allclose(found[0], expected[0], atol=2e-5)
