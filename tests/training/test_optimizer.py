from __future__ import annotations

from dataclasses import replace

import jax
import numpy as np
import pytest

from looptool_jax.models import decoder
from looptool_jax.models.config import DecoderConfig
from looptool_jax.parallel.mesh import MeshConfig, make_mesh
from looptool_jax.parallel.rules import param_shardings
from looptool_jax.training.optimizer import (
    OptimizerConfig,
    OptimizerError,
    abstract_state,
    apply_gradients,
    init_state,
    learning_rate,
    make_optimizer,
    state_shardings,
)

torch = pytest.importorskip("torch")

CFG = DecoderConfig("qwen3", 64, 16, 32, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=4)
INIT = jax.jit(decoder.init_params, static_argnums=(0, 2))
AXES = decoder.logical_axes(CFG)


def state_on(mesh, optimizer, params):
    shardings = state_shardings(optimizer, params, param_shardings(mesh, AXES, params), mesh)
    return init_state(optimizer, params, shardings), shardings


def test_adamw_equals_torch_at_a_large_learning_rate():
    """Ten steps with gradients around the clip norm, so that the clip is active in some and not in others."""
    cfg = OptimizerConfig(learning_rate=0.3, weight_decay=0.1)
    params = INIT(CFG, jax.random.key(0))
    optimizer = make_optimizer(cfg)
    state, _ = state_on(make_mesh(MeshConfig(), jax.devices()[:1]), optimizer, params)
    leaves, structure = jax.tree.flatten(params)
    reference = [torch.tensor(np.asarray(x), dtype=torch.float64, requires_grad=True) for x in leaves]
    torch_adamw = torch.optim.AdamW(reference, lr=0.3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.1)
    update = jax.jit(lambda state, grads: apply_gradients(optimizer, state, grads))

    rng = np.random.default_rng(0)
    norms = []
    for _ in range(10):
        grads = [rng.normal(scale=10 ** rng.uniform(-3, -1), size=x.shape).astype(np.float32) for x in leaves]
        for leaf, grad in zip(reference, grads, strict=True):
            leaf.grad = torch.tensor(grad, dtype=torch.float64)
        norms.append(torch.nn.utils.clip_grad_norm_(reference, 1.0).item())
        torch_adamw.step()
        state, norm = update(state, jax.tree.unflatten(structure, grads))
        assert float(norm) == pytest.approx(norms[-1], rel=1e-5)
    assert min(norms) < 1 < max(norms)
    assert int(state.step) == 10
    for found, expected in zip(jax.tree.leaves(state.params), reference, strict=True):
        np.testing.assert_allclose(found, expected.detach().numpy(), rtol=1e-5, atol=1e-5)


def test_moments_lie_like_their_parameters():
    optimizer = make_optimizer(OptimizerConfig())
    params = INIT(CFG, jax.random.key(0))
    state, shardings = state_on(make_mesh(MeshConfig(data=2, fsdp=2, tensor=2)), optimizer, params)
    by_shape = {x.shape: x.sharding for x in jax.tree.leaves(state.params)}
    moments = [x for x in jax.tree.leaves(state.opt_state) if x.shape in by_shape]
    assert len(moments) >= len(by_shape)
    assert all(x.sharding == by_shape[x.shape] for x in moments)
    assert any(not x.sharding.is_fully_replicated for x in moments)
    wanted = abstract_state(optimizer, params, shardings)
    assert jax.tree.all(jax.tree.map(lambda a, b: (a.shape, a.dtype, a.sharding) == (b.shape, b.dtype, b.sharding),
                                     state, wanted))  # fmt: skip


def test_a_donated_state_leaves_the_given_parameters_alone():
    optimizer = make_optimizer(OptimizerConfig())
    params = INIT(CFG, jax.random.key(0))
    state, _ = state_on(make_mesh(MeshConfig(), jax.devices()[:1]), optimizer, params)
    jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)(state)
    assert jax.tree.leaves(state)[0].is_deleted()
    assert not any(x.is_deleted() for x in jax.tree.leaves(params))


def test_schedules():
    constant = learning_rate(OptimizerConfig(learning_rate=0.5))
    warm = learning_rate(OptimizerConfig(learning_rate=0.5, warmup_steps=10))
    cosine = learning_rate(OptimizerConfig(learning_rate=0.5, schedule="cosine", warmup_steps=10, total_steps=30))
    assert [float(constant(i)) for i in (0, 99)] == [0.5, 0.5]
    np.testing.assert_allclose([float(warm(i)) for i in (0, 5, 10, 99)], [0, 0.25, 0.5, 0.5])
    np.testing.assert_allclose(
        [float(cosine(i)) for i in (0, 5, 10, 20, 30, 99)], [0, 0.25, 0.5, 0.25, 0, 0], atol=1e-7
    )


@pytest.mark.parametrize(
    "options, message",
    [
        ({"schedule": "linear"}, "train.optimizer.schedule is 'linear'"),
        ({"schedule": "cosine", "warmup_steps": 5, "total_steps": 5}, "needs more steps than its 5 warm-up steps"),
        ({"clip_norm": 0.0}, "train.optimizer.clip_norm: more than 0, found 0.0"),
        ({"b2": 1.0}, "train.optimizer.b2: from 0 to below 1, found 1.0"),
        ({"weight_decay": float("nan")}, "train.optimizer.weight_decay: at least 0, found nan"),
    ],
)
def test_bad_configurations(options, message):
    with pytest.raises(ValueError, match=message):
        OptimizerConfig(**options)


def test_the_number_of_steps_of_a_cosine_schedule_may_come_later():
    cfg = OptimizerConfig(schedule="cosine", warmup_steps=5)
    with pytest.raises(OptimizerError, match="total_steps is 0"):
        learning_rate(cfg)
    assert float(learning_rate(replace(cfg, total_steps=9))(9)) == 0
    with pytest.raises(OptimizerError, match="needs more steps than its 5 warm-up steps"):
        replace(cfg, total_steps=4)
