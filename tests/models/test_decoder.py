"""Shapes, and the agreement of forward, on plain rows and on groups, and decode_step with each other."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from looptool_jax.models import decoder
from looptool_jax.models.attention import KV, Cache
from looptool_jax.models.config import DecoderConfig, Experts
from looptool_jax.models.decoder import abstract_params, init_params, logical_axes, logits
from looptool_jax.models.presets import PRESETS

SIZES = {"vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_layers": 2}
HEADS = {"num_heads": 4, "num_kv_heads": 2, "head_dim": 16, "rope_theta": 100.0}
QWEN3 = DecoderConfig("qwen3", **SIZES, **HEADS)
LLAMA = DecoderConfig("llama", **SIZES, **HEADS, tie_embeddings=False)
MOE = DecoderConfig("qwen3_moe", **SIZES, **HEADS, experts=Experts(4, 2, 12, normalize=True))
N, G, P, R = 3, 2, 7, 5
LENGTHS = np.array([7, 4, 1])

forward = jax.jit(decoder.forward, static_argnums=1, static_argnames="remat")
decode_step = jax.jit(decoder.decode_step, static_argnums=1)


@cache
def sharp_params(cfg):
    """Random parameters with weights large enough that attention is far from uniform."""
    rng = np.random.default_rng(1)
    params = jax.jit(init_params, static_argnums=0)(cfg, jax.random.key(0))
    return jax.tree.map(lambda x: 2.0 * x if x.ndim > 2 else x + np.float32(0.3) * rng.normal(size=x.shape), params)


def example():
    rng = np.random.default_rng(2)
    prompts, answers = rng.integers(0, 61, (N, P), np.int32), rng.integers(0, 61, (N, G, R), np.int32)
    positions = np.broadcast_to(LENGTHS[:, None, None] + np.arange(R), (N, G, R))
    return prompts, answers, np.arange(P) < LENGTHS[:, None], positions


def plain_ends(valid):
    return np.where(valid, valid.sum(axis=1, keepdims=True), 0).astype(np.int32)


def groups(params, cfg, remat="none"):
    """The example as rows of a prompt and its answers: hidden of the prompts and of the answers."""
    prompts, answers, valid, positions = example()
    time = P + G * R
    tokens = np.concatenate([prompts, answers.reshape(N, -1)], axis=1)
    places = np.concatenate([np.broadcast_to(np.arange(P), (N, P)), positions.reshape(N, -1)], axis=1)
    own = np.broadcast_to(np.repeat(P + R * (1 + np.arange(G)), R), (N, G * R))
    ends = np.concatenate([np.where(valid, time, 0), own], axis=1)
    hidden, _ = forward(params, cfg, tokens, places, ends, remat=remat)
    return hidden[:, :P], hidden[:, P:].reshape(N, G, R, -1)


def shared(params, cfg, remat="none"):
    return groups(params, cfg, remat)[1]


def repeated(params, cfg):
    """The same answers, each behind a copy of its prompt: one row of a batch each."""
    prompts, answers, _, _ = example()
    tokens = np.zeros((N, G, P + R), np.int32)
    for n, length in enumerate(LENGTHS):
        tokens[n, :, :length], tokens[n, :, length : length + R] = prompts[n, :length], answers[n]
    flat = tokens.reshape(N * G, P + R)
    positions = np.broadcast_to(np.arange(P + R), flat.shape)
    valid = np.repeat(np.arange(P + R) < LENGTHS[:, None] + R, G, axis=0)
    hidden = forward(params, cfg, flat, positions, plain_ends(valid))[0].reshape(N, G, P + R, -1)
    return jnp.stack([hidden[n, :, length : length + R] for n, length in enumerate(LENGTHS)])


@pytest.mark.parametrize("cfg", [QWEN3, LLAMA], ids=["qwen3", "llama"])
def test_shared_prompt_equals_repeated_prompt(cfg):
    params = sharp_params(cfg)
    np.testing.assert_allclose(shared(params, cfg), repeated(params, cfg), atol=2e-5)
    hidden = shared(params, cfg)
    assert jnp.abs(hidden[:, 0] - hidden[:, 1]).max() > 0.1


def test_gradients_through_the_shared_prompt_equal_those_of_repeated_prompts():
    params = sharp_params(QWEN3)
    target = jax.random.normal(jax.random.key(5), (N, G, R, QWEN3.hidden_size))

    def gradient(run):
        return jax.jit(jax.grad(lambda params: jnp.sum(run(params, QWEN3) * target)))(params)

    ours, theirs = gradient(partial(shared, remat="full")), gradient(repeated)
    for path, expected in jax.tree.leaves_with_path(theirs):
        found = dict(jax.tree.leaves_with_path(ours))[path]
        assert jnp.linalg.norm(found - expected) <= 1e-5 * jnp.linalg.norm(expected), path


@pytest.mark.parametrize("cfg", [QWEN3, LLAMA, MOE], ids=lambda cfg: cfg.architecture)
def test_decoding_token_by_token_equals_scoring_the_answer(cfg):
    params = sharp_params(cfg)
    prompts, answers, valid, positions = example()
    rows = np.broadcast_to(np.arange(P), (N, P))
    _, prompt_kv = forward(params, cfg, prompts, rows, plain_ends(valid))
    expected = shared(params, cfg)
    shape = (cfg.num_layers, N, G, cfg.num_kv_heads, R, cfg.head_dim)
    cache = KV(np.full(shape, 1e3, np.float32), np.full(shape, 1e3, np.float32))  # what is not written must not be seen
    length = jnp.asarray(LENGTHS)[:, None]
    prompt = Cache(jax.tree.map(lambda x: x.swapaxes(-3, -2), prompt_kv), length, length.max())
    # rows advance by their own clocks: the second row of each group starts one step later
    starts = np.broadcast_to(np.array([0, 1]), (N, G))
    rows = (np.arange(N)[:, None], np.arange(G))
    found = np.zeros_like(expected)
    for time in range(R + 1):
        index = np.clip(time - starts, 0, R - 1)
        now, place = (np.take_along_axis(x, index[..., None], 2)[..., 0] for x in (answers, positions))
        own = Cache(cache, jnp.asarray(index), jnp.asarray(index.max()))
        hidden, new = decode_step(params, cfg, now[..., None], place[..., None], [prompt, own])
        for old, entry in zip(cache, new, strict=True):
            old[:, *rows, :, index] = np.moveaxis(entry[..., 0, :], 0, 2)
        found[*rows, index] = hidden[:, :, 0]
    np.testing.assert_allclose(found, expected, atol=2e-5)


def test_the_prompts_of_a_group_are_those_of_plain_rows():
    params = sharp_params(QWEN3)
    prompts, _, valid, _ = example()
    rows = np.broadcast_to(np.arange(P), (N, P))
    alone, _ = forward(params, QWEN3, prompts, rows, plain_ends(valid))
    beside_answers, _ = groups(params, QWEN3)
    np.testing.assert_allclose(beside_answers[valid], alone[valid], atol=2e-5)


def test_padding_and_other_samples_do_not_matter():
    params = sharp_params(QWEN3)
    tokens = jax.random.randint(jax.random.key(8), (1, 9), 1, 61)
    positions = jnp.array([[0, 1, 2, 3, 0, 1, 2, 0, 0]])
    ends = jnp.array([[4, 4, 4, 4, 7, 7, 7, 0, 0]])
    hidden, kv = forward(params, QWEN3, tokens, positions, ends)
    other, other_kv = forward(params, QWEN3, tokens.at[0, 7:].set(5).at[0, 1].set(7), positions, ends)
    np.testing.assert_array_equal(hidden[0, 4:7], other[0, 4:7])
    np.testing.assert_array_equal(kv.k[:, 0, 4:7], other_kv.k[:, 0, 4:7])
    assert jnp.abs(hidden[0, 1:4] - other[0, 1:4]).max() > 1e-2
    assert bool(jnp.isfinite(hidden).all())


def test_what_is_computed_again_changes_nothing():
    """Loops over pairs of blocks tell how often attention is computed: forward, backward, and again for "full"."""
    params = sharp_params(QWEN3)
    prompts, _, valid, _ = example()
    rows = np.broadcast_to(np.arange(P), (N, P))

    def loss(remat, params):
        hidden, _ = decoder.forward(params, QWEN3, prompts, rows, plain_ends(valid), remat=remat)
        return (jnp.where(valid[..., None], hidden, 0.0) ** 3).sum()

    found = {how: jax.jit(jax.grad(partial(loss, how))) for how in ("none", "attention", "full")}
    loops = {how: str(gradient.trace(params).jaxpr).count("while[") for how, gradient in found.items()}
    assert loops == {"none": 2, "attention": 2, "full": 3}
    plain = found["none"](params)
    for how in ("attention", "full"):
        for path, expected in jax.tree.leaves_with_path(plain):
            again = dict(jax.tree.leaves_with_path(found[how](params)))[path]
            assert jnp.linalg.norm(again - expected) <= 1e-6 * jnp.linalg.norm(expected), (how, path)


def test_bfloat16():
    params = sharp_params(QWEN3)
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    prompts, _, valid, _ = example()
    rows = np.broadcast_to(np.arange(P), (N, P))
    hidden, kv = forward(half, QWEN3, prompts, rows, plain_ends(valid))
    assert hidden.dtype == kv.k.dtype == kv.v.dtype == jnp.bfloat16
    out = logits(half, QWEN3, hidden)
    assert out.dtype == jnp.float32
    exact = logits(params, QWEN3, forward(params, QWEN3, prompts, rows, plain_ends(valid))[0])
    error = jnp.linalg.norm((out - exact)[valid]) / jnp.linalg.norm(exact[valid])
    assert error < 0.05


def test_parameter_tree():
    params = init_params(LLAMA, jax.random.key(0), jnp.bfloat16)
    shapes = abstract_params(LLAMA, jnp.bfloat16)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), params) == jax.tree.map(lambda x: (x.shape, x.dtype), shapes)
    axes = logical_axes(LLAMA)
    assert jax.tree.all(jax.tree.map(lambda leaf, names: leaf.ndim == len(names), shapes, axes))
    assert axes["layers"]["q"] == ("layers", "embed", "heads", "head_dim")
    assert "q_norm" not in params["layers"] and "q_norm" in abstract_params(QWEN3)["layers"]
    assert "unembedding" in params and "unembedding" not in abstract_params(QWEN3)


def test_a_published_model_without_memory():
    qwen3_8b = PRESETS["Qwen/Qwen3-8B"]
    ids = jax.ShapeDtypeStruct((4, 10240 + 16 * 1024), jnp.int32)
    params = abstract_params(qwen3_8b, jnp.bfloat16)
    out, _ = jax.eval_shape(lambda params, *rows: decoder.forward(params, qwen3_8b, *rows), params, ids, ids, ids)
    assert out.shape == (4, 26624, 4096) and out.dtype == jnp.bfloat16
