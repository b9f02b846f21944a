from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from looptool_jax.models import decoder
from looptool_jax.models.config import DecoderConfig
from looptool_jax.parallel.mesh import MeshConfig, ShardingError, make_mesh
from looptool_jax.parallel.rules import param_shardings
from looptool_jax.training.optimizer import OptimizerConfig, init_state, make_optimizer, state_shardings
from looptool_jax.training.sft import SftConfig, epoch_batches, make_sft_step, pack

CFG = DecoderConfig("qwen3", 64, 16, 32, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=4)
INIT = jax.jit(decoder.init_params, static_argnums=(0, 2))
RECORD = optax.chain(optax.trace(decay=0.0), optax.set_to_zero())

examples_strategy = st.lists(
    st.lists(st.integers(0, 63), min_size=1, max_size=14).flatmap(
        lambda ids: st.tuples(st.just(ids), st.integers(0, len(ids)))
    ),
    max_size=20,
)


def unpack(batch):
    """Every packed example as (ids, weights), in the order of (row, place)."""
    found = []
    for row in range(len(batch.tokens)):
        for end in np.unique(batch.ends[row][batch.ends[row] > 0]):
            at = np.flatnonzero(batch.ends[row] == end)
            assert at[-1] == end - 1
            assert (np.diff(at) == 1).all() and (batch.positions[row, at] == np.arange(len(at))).all()
            found.append((batch.tokens[row, at].tolist(), batch.weights[row, at].tolist()))
    return found


@given(examples_strategy, st.integers(1, 4))
def test_packing_keeps_every_example_that_fits(examples, rows_multiple):
    packed = pack(examples, 12, prompt_weight=0.25, rows_multiple=rows_multiple)
    kept = [(ids, prompt) for ids, prompt in examples if len(ids) <= 12]
    assert packed.dropped == len(examples) - len(kept)
    assert len(packed.batch.tokens) % rows_multiple == 0 and len(packed.batch.tokens) >= 1
    expected = [(ids, [0.0, *([0.25] * (prompt - 1)), *([1.0] * (len(ids) - max(prompt, 1)))]) for ids, prompt in kept]
    assert sorted(unpack(packed.batch)) == sorted(expected)
    padding = packed.batch.ends == 0
    assert not packed.batch.tokens[padding].any() and not packed.batch.weights[padding].any()


def test_packing_is_first_fit_in_order():
    packed = pack([([1] * 6, 0), ([2] * 5, 0), ([3] * 4, 0), ([4] * 5, 0)], 10)
    assert packed.batch.tokens.tolist() == [[1] * 6 + [3] * 4, [2] * 5 + [4] * 5]


def test_epochs_are_shuffled_and_can_be_continued():
    batch = pack([([i + 1] * 3, 0) for i in range(11)], 3).batch
    first = [b.tokens[:, 0].tolist() for b in epoch_batches(batch, 2, seed=5, epoch=0)]
    assert len(first) == 5 and len({i for rows in first for i in rows}) == 10
    assert [b.tokens[:, 0].tolist() for b in epoch_batches(batch, 2, seed=5, epoch=0, start=3)] == first[3:]
    assert [b.tokens[:, 0].tolist() for b in epoch_batches(batch, 2, seed=5, epoch=1)] != first


def example_batch(rows_multiple):
    rng = np.random.default_rng(0)
    examples = []
    for _ in range(14):
        size = int(rng.integers(2, 11))
        examples.append((rng.integers(0, 64, size).tolist(), int(rng.integers(0, size))))
    return examples, pack(examples, 20, prompt_weight=0.3, rows_multiple=rows_multiple).batch


def naive_loss(params, examples):
    """Each example alone in its row, whole logits; weighted mean over all tokens."""
    length = max(len(ids) for ids, _ in examples)
    tokens = np.array([[*ids, *[0] * (length - len(ids))] for ids, _ in examples])
    places = np.broadcast_to(np.arange(length), tokens.shape)
    weights = np.array(
        [[0.3 if t < prompt else float(t < len(ids)) for t in range(length)] for ids, prompt in examples]
    )
    hidden, _ = decoder.forward(params, CFG, tokens, places, np.full_like(tokens, length))
    logprobs = jax.nn.log_softmax(decoder.logits(params, CFG, hidden[:, :-1]))
    chosen = jnp.take_along_axis(logprobs, tokens[:, 1:, None], axis=-1)[..., 0]
    return -(chosen * weights[:, 1:]).sum() / weights[:, 1:].sum()


def recorded_gradients(mesh, sft, params, batch):
    shardings = state_shardings(RECORD, params, param_shardings(mesh, decoder.logical_axes(CFG), params), mesh)
    step = make_sft_step(CFG, sft, RECORD, mesh, shardings)
    state, metrics = step(init_state(RECORD, params, shardings), batch)
    return jax.tree.map(np.asarray, state.opt_state[0].trace), {k: float(v) for k, v in metrics.items()}


def test_gradient_equals_that_of_unpacked_examples():
    """Four micro-batches of very different token counts; eight devices: both the naive gradient."""
    params = INIT(CFG, jax.random.key(0))
    examples, batch = example_batch(rows_multiple=8)
    assert (batch.ends.max(axis=1) == 0).any()  # an empty row, so that parts differ in their tokens
    loss, expected = jax.jit(jax.value_and_grad(lambda p: naive_loss(p, examples)))(params)
    one, eight = make_mesh(MeshConfig(), jax.devices()[:1]), make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    for mesh, sft in (
        (one, SftConfig(compute_dtype="float32", logprob_chunk=8, micro_batches=4)),
        (eight, SftConfig(compute_dtype="float32", micro_batches=2, remat="full")),
    ):
        found, metrics = recorded_gradients(mesh, sft, params, batch)
        assert metrics["loss"] == pytest.approx(float(loss), rel=1e-5)
        assert metrics["tokens"] == sum(len(ids) - 1 for ids, _ in examples)
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            assert np.linalg.norm(a - b) < 1e-5 * np.linalg.norm(b)


def test_training_learns():
    """Sequences counting upwards from anywhere, float32 weights, bfloat16 passes: the loss falls towards zero."""
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    optimizer = make_optimizer(OptimizerConfig(learning_rate=1e-2))
    params = INIT(CFG, jax.random.key(0))
    shardings = state_shardings(optimizer, params, param_shardings(mesh, decoder.logical_axes(CFG), params), mesh)
    step = make_sft_step(CFG, SftConfig(compute_dtype="bfloat16"), optimizer, mesh, shardings)
    state = init_state(optimizer, params, shardings)
    batch = pack([([(start + i) % 64 for i in range(10)], 1) for start in range(64)], 20, rows_multiple=8).batch
    losses = []
    for epoch in range(20):
        for part in epoch_batches(batch, 8, 0, epoch):
            state, metrics = step(state, part)
            losses.append(float(metrics["loss"]))
    assert losses[0] > 3.5 and losses[-1] < 0.3
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(state.params))


def test_rows_that_do_not_divide():
    mesh = make_mesh(MeshConfig(data=2, fsdp=4))
    params = decoder.abstract_params(CFG)
    shardings = state_shardings(RECORD, params, param_shardings(mesh, decoder.logical_axes(CFG), params), mesh)
    step = make_sft_step(CFG, SftConfig(compute_dtype="float32", micro_batches=2), RECORD, mesh, shardings)
    batch = pack([([1, 2], 0)], 4, rows_multiple=24).batch
    with pytest.raises(ShardingError, match="24 rows do not divide into 2 micro-batches over 8 batch shards"):
        step(None, batch)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"compute_dtype": "int8"}, "sft.compute_dtype is 'int8'"),
        ({"micro_batches": 0}, "sft.micro_batches: at least 1, found 0"),
        ({"logprob_chunk": 0}, "sft.logprob_chunk: at least 1, found 0"),
    ],
)
def test_bad_configurations(options, message):
    with pytest.raises(ValueError, match=message):
        SftConfig(**options)
