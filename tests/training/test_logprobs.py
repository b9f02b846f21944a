from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from looptool_jax.models import decoder
from looptool_jax.models.config import DecoderConfig
from looptool_jax.training.grpo import GrpoConfig, answer_logprobs
from looptool_jax.training.logprobs import token_logprobs
from looptool_jax.training.rows import Group, packed_rows
from looptool_jax.training.sft import SftBatch, SftConfig, sft_loss

CFG = DecoderConfig("qwen3", 499, 16, 24, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=8)
INIT = jax.jit(decoder.init_params, static_argnums=(0, 2))


def naive(params, hidden, targets):
    logprobs = jax.nn.log_softmax(decoder.logits(params, CFG, hidden), axis=-1)
    return jnp.take_along_axis(logprobs, targets[..., None], axis=-1)[..., 0]


@pytest.mark.parametrize("shape, chunk", [((3, 10), 4), ((2, 3, 8), 2), ((2, 3, 7), 7)])
def test_values_and_gradients_equal_the_naive_ones(shape, chunk):
    params = INIT(CFG, jax.random.key(0))
    hidden = 20 * jax.random.normal(jax.random.key(1), (*shape, CFG.hidden_size))
    targets = jax.random.randint(jax.random.key(2), shape, 0, CFG.vocab_size)
    weights = jax.random.normal(jax.random.key(3), shape)

    def chunked(params, hidden):
        return token_logprobs(params, CFG, hidden, targets, chunk, needed=jnp.ones(shape, bool))

    @jax.jit
    def compare(params, hidden):
        (a, pull_a), (b, pull_b) = (jax.vjp(f, params, hidden) for f in (chunked, lambda *x: naive(*x, targets)))
        return a, b, pull_a(weights), pull_b(weights)

    a, b, found, expected = compare(params, hidden)
    assert a.dtype == jnp.float32
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * float(jnp.abs(b).max()))


def test_bfloat16_weights_give_float32_logprobs():
    params = INIT(CFG, jax.random.key(0), jnp.bfloat16)
    hidden = jax.random.normal(jax.random.key(1), (2, 6, CFG.hidden_size), jnp.bfloat16)
    targets = jnp.zeros((2, 6), jnp.int32)
    found = token_logprobs(params, CFG, hidden, targets, 4, needed=jnp.ones((2, 6), bool))
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, naive(params, hidden, targets), rtol=1e-5)


def test_what_nothing_needs_is_not_computed():
    params = INIT(CFG, jax.random.key(0))
    hidden = jax.random.normal(jax.random.key(1), (2, 12, CFG.hidden_size)).at[:, 4:8].set(jnp.nan)
    targets = jnp.ones((2, 12), jnp.int32)
    needed = jnp.zeros((2, 12), bool).at[0, 1].set(True).at[1, 9].set(True)

    def total(hidden):
        logprobs = token_logprobs(params, CFG, hidden, targets, 4, needed=needed)
        return jnp.where(needed, logprobs, 0.0).sum(), logprobs

    (_, logprobs), gradient = jax.jit(jax.value_and_grad(total, has_aux=True))(hidden)
    assert bool((logprobs[:, 4:8] == 0).all()) and bool((logprobs[:, :4] != 0).all())
    assert bool((gradient[:, 4:8] == 0).all()) and bool((gradient[0, 1] != 0).any())


def array_sizes(jaxpr):
    """Shapes of every array that appears anywhere in a jaxpr, scans and remat included."""
    for eqn in jaxpr.eqns:
        yield from (v.aval.shape for v in eqn.outvars if hasattr(v.aval, "shape"))
        for sub in jax.tree.leaves(list(eqn.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
            if hasattr(sub, "jaxpr"):
                sub = sub.jaxpr
            if hasattr(sub, "eqns"):
                yield from array_sizes(sub)


def largest_with_vocab(gradient, *args):
    shapes = list(array_sizes(jax.make_jaxpr(gradient)(*args).jaxpr))
    return max(math.prod(shape) for shape in shapes if CFG.vocab_size in shape and len(shape) > 2)


def test_no_array_of_rows_time_vocab_in_the_sft_gradient():
    rows, time, chunk = 3, 32, 8
    batch = SftBatch(*(jnp.ones((rows, time), jnp.int32) for _ in range(3)), jnp.ones((rows, time)))
    params = INIT(CFG, jax.random.key(0))

    def largest(chunk):
        sft = SftConfig(compute_dtype="float32", logprob_chunk=chunk)
        return largest_with_vocab(jax.grad(lambda p: sft_loss(p, CFG, sft, batch)), params)

    assert largest(chunk) == rows * chunk * CFG.vocab_size
    assert largest(time) == rows * time * CFG.vocab_size  # the inspection does see the big array where there is one


def test_no_array_of_answers_time_vocab_in_the_grpo_gradient():
    [micro] = packed_rows([Group([1] * 5, [[1] * 16] * 3, [1.0] * 3)] * 2, 64, 2).micro_batches
    params = INIT(CFG, jax.random.key(0))
    grpo = GrpoConfig(compute_dtype="float32", logprob_chunk=4)
    gradient = jax.grad(lambda p: answer_logprobs(p, CFG, grpo, micro).sum())
    assert largest_with_vocab(gradient, params) == 2 * 4 * CFG.vocab_size
