"""Every mesh computes what one device computes, with the collectives one expects."""

import re
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from looptool_jax.models.attention import KV, Cache
from looptool_jax.models.config import DecoderConfig, Experts
from looptool_jax.models.decoder import (
    abstract_params,
    decode_step,
    forward,
    init_params,
    logical_axes,
    logits,
    put,
)
from looptool_jax.parallel.mesh import MeshConfig, make_mesh
from looptool_jax.parallel.rules import DECODING, TRAINING, batch_sharding, kv_sharding, param_shardings
from looptool_jax.training.rows import Group, packed_rows

DENSE = DecoderConfig("qwen3", 64, 32, 64, 2, 8, 4, 16, rope_theta=100.0)
MOE = DecoderConfig("qwen3_moe", 64, 32, 64, 2, 8, 4, 16, rope_theta=100.0, experts=Experts(8, 2, 24, normalize=True))
CASES = [
    (DENSE, MeshConfig(1, 8, 1)),
    (DENSE, MeshConfig(2, 2, 2)),
    (DENSE, MeshConfig(1, 2, 4)),
    (MOE, MeshConfig(fsdp=2, expert=4)),
    (MOE, MeshConfig(fsdp=2, tensor=2, expert=2)),
]
N, G, P, R = 8, 2, 12, 5


def example(cfg):
    rng = np.random.default_rng(0)

    def weight(leaf):
        scale = 2.0 / np.sqrt(cfg.hidden_size) if leaf.ndim > 2 else 0.3
        return jnp.asarray(scale * rng.normal(size=leaf.shape) + (leaf.ndim == 1), leaf.dtype)

    groups = [
        Group(rng.integers(0, 64, rng.integers(1, P + 1)).tolist(), rng.integers(0, 64, (G, R)).tolist(), [1.0] * G)
        for _ in range(N)
    ]
    [micro] = packed_rows(groups, P + G * R, N).micro_batches
    return jax.tree.map(weight, abstract_params(cfg)), jax.tree.map(jnp.asarray, micro)


def loss(cfg, params, micro):
    """Log-probabilities of the answers on shared prompts (prompt and answer both matter to the gradient)."""
    hidden, _ = forward(params, cfg, micro.tokens, micro.positions, micro.ends, remat="full")
    hidden = jnp.take_along_axis(hidden, micro.sources[..., None], axis=1)
    scores = jax.nn.log_softmax(logits(params, cfg, hidden))
    return -(jnp.take_along_axis(scores, micro.targets[..., None], -1)[..., 0] * micro.token_shares).sum()


@cache
def compiled(cfg, mesh_config):
    mesh = make_mesh(mesh_config)
    shardings = param_shardings(mesh, logical_axes(cfg), abstract_params(cfg))
    rows = batch_sharding(mesh, 1)
    step = jax.jit(
        jax.value_and_grad(partial(loss, cfg)), in_shardings=(shardings, rows), out_shardings=(None, shardings)
    )
    with jax.set_mesh(mesh):
        return step.lower(*jax.eval_shape(partial(example, cfg))).compile(), shardings, rows


@cache
def single(cfg):
    return jax.jit(jax.value_and_grad(partial(loss, cfg)))(*example(cfg))


@pytest.mark.parametrize(
    ("cfg", "mesh_config"), CASES, ids=[f"{cfg.architecture}-{mesh_config}" for cfg, mesh_config in CASES]
)
def test_loss_and_gradient(cfg, mesh_config):
    step, shardings, rows = compiled(cfg, mesh_config)
    params, micro = example(cfg)
    value, gradient = step(jax.device_put(params, shardings), jax.device_put(micro, rows))
    expected_value, expected_gradient = single(cfg)
    assert abs(value - expected_value) <= 1e-5 * abs(expected_value)
    for path, expected in jax.tree.leaves_with_path(expected_gradient):
        found = dict(jax.tree.leaves_with_path(gradient))[path]
        assert jnp.linalg.norm(jax.device_get(found) - expected) <= 1e-5 * jnp.linalg.norm(expected), path
    assert jax.tree.map(lambda leaf: leaf.sharding, gradient) == shardings


def collectives(program):
    return re.findall(r" (all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)\(", program.as_text())


def test_training_gathers_parameters_not_activations():
    """The activations are pinned to their rows, so that the compiler gathers the weights of one layer at a time."""
    step, _, _ = compiled(DENSE, MeshConfig(1, 8, 1))
    gathered = re.findall(r"= \S*?f32\[([\d,]+)\]\S* all-gather\(", step.as_text())
    gathered = {tuple(map(int, shape.split(","))) for shape in gathered}
    weights = {shape for leaf in jax.tree.leaves(abstract_params(DENSE)) for shape in (leaf.shape, leaf.shape[1:])}
    assert gathered and gathered <= weights


def compiled_decoding(cfg, mesh_config, rules=DECODING):
    """The program of one decoding step, and the bytes of its answers' cache."""
    mesh = make_mesh(mesh_config)
    params = abstract_params(cfg)
    shardings = param_shardings(mesh, logical_axes(cfg), params, rules)
    ids = jax.ShapeDtypeStruct((N, G), jnp.int32)
    prompt = jax.ShapeDtypeStruct((cfg.num_layers, N, cfg.num_kv_heads, P, cfg.head_dim), jnp.float32)
    answer = jax.ShapeDtypeStruct((cfg.num_layers, N, G, cfg.num_kv_heads, R, cfg.head_dim), jnp.float32)
    rows, prompt_rows, answer_rows = batch_sharding(mesh, 2), kv_sharding(mesh, 5), kv_sharding(mesh, 6)

    def one(params, tokens, positions, prompt_kv, length, answer_kv, place):
        caches = [Cache(prompt_kv, length, jnp.int32(P)), Cache(answer_kv, place[None, None], place)]
        hidden, new = decode_step(params, cfg, tokens[..., None], positions[..., None], caches)
        return hidden, put(answer_kv, new, place)

    step = jax.jit(
        one,
        in_shardings=(shardings, rows, rows, KV(prompt_rows, prompt_rows), rows, KV(answer_rows, answer_rows), None),
        out_shardings=(batch_sharding(mesh, 4), KV(answer_rows, answer_rows)),
        donate_argnums=5,
    )
    length, place = jax.ShapeDtypeStruct((N, 1), jnp.int32), jax.ShapeDtypeStruct((), jnp.int32)
    with jax.set_mesh(mesh):
        program = step.lower(params, ids, ids, KV(prompt, prompt), length, KV(answer, answer), place).compile()
    return program, 2 * answer.size * 4


def test_decoding_step_only_sums_over_tensor():
    program, cache_bytes = compiled_decoding(DENSE, MeshConfig(1, 2, 4))
    assert set(collectives(program)) == {"all-reduce"}
    assert len(collectives(program)) == 3  # token embedding, attention output, MLP output
    assert program.memory_analysis().alias_size_in_bytes >= cache_bytes // 8  # the cache is updated in place


def moved(program):
    """The shapes that arrays have after they were gathered or sent elsewhere."""
    kinds = re.findall(r"= (.*?) (?:all-gather|all-to-all|collective-permute)\(", program.as_text())
    return {tuple(map(int, dims.split(","))) for kind in kinds for dims in re.findall(r"\w+\[([\d,]+)\]", kind)}


def test_decoding_step_of_a_mixture_moves_rows_not_experts():
    mesh_config = MeshConfig(fsdp=2, tensor=2, expert=2)
    rows = N * G // 2  # of one expert group
    activations = {(rows, MOE.hidden_size), (rows, MOE.experts.per_token)}
    assert moved(compiled_decoding(MOE, mesh_config)[0]) == activations
    local_experts = (1, 4, MOE.hidden_size, 12)  # what a shard would gather, were parameters split as in training
    assert local_experts in moved(compiled_decoding(MOE, mesh_config, TRAINING)[0])


def test_parameters_are_created_on_the_mesh():
    mesh = make_mesh(MeshConfig(2, 2, 2))
    shardings = param_shardings(mesh, logical_axes(DENSE), abstract_params(DENSE))
    params = jax.jit(partial(init_params, DENSE), out_shardings=shardings)(jax.random.key(0))
    assert params["layers"]["gate"].sharding == shardings["layers"]["gate"]
    assert params["layers"]["gate"].addressable_shards[0].data.shape == (2, 16, 32)
