"""The mixture of experts against a sum over all experts, whatever the router chooses and the mesh is."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from looptool_jax.models import moe
from looptool_jax.models.config import Experts, ModelError
from looptool_jax.models.linear import quantized
from looptool_jax.models.lora import LoraConfig, init_adapters
from looptool_jax.models.moe import mixture
from looptool_jax.models.presets import PRESETS
from looptool_jax.parallel.mesh import MeshConfig, make_mesh

CFG = Experts(count=6, per_token=2, intermediate_size=5, normalize=True)
ROWS, EMBED = 16, 8
PAD = {"gate": ((0, 0), (0, 1)), "up": ((0, 0), (0, 1)), "down": ((0, 1), (0, 0))}  # five features to six


def example(dtype=jnp.float32):
    rng = np.random.default_rng(0)
    shapes = {"router": (EMBED, 6), "gate": (6, EMBED, 5), "up": (6, EMBED, 5), "down": (6, 5, EMBED)}
    p = {name: jnp.asarray(rng.normal(size=shape), dtype) for name, shape in shapes.items()}
    return p, jnp.asarray(rng.normal(size=(ROWS, EMBED)), dtype)


def every_expert(cfg, p, x):
    """The definition: all experts compute every row, and those that were not chosen weigh nothing."""
    x, p = x.astype(jnp.float32), jax.tree.map(lambda leaf: leaf.astype(jnp.float32), p)
    shares = jax.nn.softmax(x @ p["router"])
    chosen = shares >= jnp.sort(shares)[:, -cfg.per_token, None]
    weights = jnp.where(chosen, shares, 0.0)
    if cfg.normalize:
        weights /= weights.sum(-1, keepdims=True)
    hidden = jax.nn.silu(jnp.einsum("rd,edf->erf", x, p["gate"])) * jnp.einsum("rd,edf->erf", x, p["up"])
    return jnp.einsum("re,erf,efd->rd", weights, hidden, p["down"])


def gradients(layer, p, x):
    weight = jnp.asarray(np.random.default_rng(1).normal(size=x.shape), jnp.float32)
    return jax.jit(jax.grad(lambda p, x: jnp.sum(layer(p, x) * weight), argnums=(0, 1)))(p, x)


def assert_close(found, expected, bound=1e-5):
    for path, leaf in jax.tree.leaves_with_path(expected):
        other = dict(jax.tree.leaves_with_path(found))[path]
        assert jnp.linalg.norm(other - leaf) <= bound * jnp.linalg.norm(leaf), path


@pytest.mark.parametrize("normalize", [True, False])
def test_result_and_gradients(normalize):
    cfg = replace(CFG, normalize=normalize)
    p, x = example()
    np.testing.assert_allclose(mixture(cfg, p, x), every_expert(cfg, p, x), atol=1e-5)
    assert_close(gradients(partial(mixture, cfg), p, x), gradients(partial(every_expert, cfg), p, x))


def test_no_row_is_dropped_when_all_go_to_the_same_experts():
    p, x = example()
    p["router"] = jnp.zeros_like(p["router"]).at[0].set(jnp.arange(6.0))
    x = x.at[:, 0].set(4.0)  # the last two experts get every row, the others none
    np.testing.assert_allclose(mixture(CFG, p, x), every_expert(CFG, p, x), atol=1e-5)
    (found, _), (expected, _) = (gradients(partial(layer, CFG), p, x) for layer in (mixture, every_expert))
    assert_close(found["gate"], expected["gate"])
    assert not found["gate"][:4].any()


def test_bfloat16_is_summed_in_float32():
    p, x = example(jnp.bfloat16)
    found = mixture(CFG, p, x)
    assert found.dtype == jnp.bfloat16
    expected = every_expert(CFG, p, x)
    assert jnp.linalg.norm(found - expected) < 0.01 * jnp.linalg.norm(expected)


@pytest.mark.parametrize("rows", [16, 5])
def test_on_a_mesh(rows):
    """16 rows are split over the batch axes; 5 are not, and every shard computes them."""
    p, x = example()
    x, cfg = x[:rows], replace(CFG, intermediate_size=4)
    p |= {"gate": p["gate"][..., :4], "up": p["up"][..., :4], "down": p["down"][:, :4]}
    with jax.set_mesh(make_mesh(MeshConfig(fsdp=2, tensor=2, expert=2))):
        found = jax.jit(partial(mixture, cfg))(p, x)
        found_gradients = gradients(partial(mixture, cfg), p, x)
    np.testing.assert_allclose(found, every_expert(cfg, p, x), atol=1e-5)
    assert_close(jax.device_get(found_gradients), gradients(partial(every_expert, cfg), p, x))


def test_int8_experts_on_a_mesh():
    p, x = example()
    p |= {name: quantized(jnp.pad(p[name], [(0, 0), *shape]), (1,)) for name, shape in PAD.items()}
    expected = mixture(CFG, p, x)
    assert 1e-3 < jnp.linalg.norm(expected - every_expert(CFG, example()[0], x)) / jnp.linalg.norm(expected) < 0.05
    with jax.set_mesh(make_mesh(MeshConfig(fsdp=2, tensor=2, expert=2))):
        np.testing.assert_allclose(jax.jit(partial(mixture, CFG))(p, x), expected, atol=1e-5)


def test_experts_have_no_adapters():
    cfg = PRESETS["Qwen/Qwen3-30B-A3B"]
    with pytest.raises(ModelError, match=r"lora\.targets: experts have no adapters; gate is none of q, k, v, o$"):
        init_adapters(cfg, LoraConfig(), jax.random.key(0))
    adapters = jax.eval_shape(lambda: init_adapters(cfg, LoraConfig(targets=("q", "o")), jax.random.key(0)))
    assert adapters["o"]["a"].shape == (48, 32, 128, 16)


def undefined_past_the_end(product):
    """`project_parts` as the specification allows: what belongs to no part is NaN, in the gradient too."""

    @jax.custom_vjp
    def project(x, w, sizes):
        return poisoned(product(x, w, sizes), sizes)

    def backward(saved, d_out):
        (x, w, sizes) = saved
        d_x, d_w = jax.vjp(lambda x, w: product(x, w, sizes), x, w)[1](d_out)
        return poisoned(d_x, sizes), d_w, None

    def poisoned(y, sizes):
        return jnp.where(jnp.arange(y.shape[0])[:, None] < sizes.sum(), y, jnp.nan)

    project.defvjp(lambda *inputs: (project(*inputs), inputs), backward)
    return project


def test_rows_of_other_shards_may_hold_anything(monkeypatch):
    monkeypatch.setattr(moe, "project_parts", undefined_past_the_end(moe.project_parts))
    p, x = example()

    def in_halves(p, x):
        chosen = moe._route(CFG, p["router"], x)
        halves = [{name: p[name][part] for name in moe.MATRICES} for part in (slice(0, 3), slice(3, 6))]
        return sum(moe._experts(*chosen, x, half, first) for half, first in zip(halves, (0, 3), strict=True))

    np.testing.assert_allclose(in_halves(p, x), every_expert(CFG, p, x), atol=1e-5)
    assert_close(gradients(in_halves, p, x), gradients(partial(every_expert, CFG), p, x))
