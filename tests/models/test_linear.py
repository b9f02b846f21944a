"""Weights in int8 and weights with low-rank terms: products, gradients, decoders, and PEFT's layout."""

from __future__ import annotations

import json
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import qwix

from looptool_jax.models import hf
from looptool_jax.models.config import DecoderConfig, ModelError
from looptool_jax.models.decoder import forward, init_params, logical_axes, logits
from looptool_jax.models.linear import LowRank, axes_of, project, project_parts, quantize_layers, quantized
from looptool_jax.models.lora import (
    LoraConfig,
    adapter_axes,
    adapter_base,
    attach,
    init_adapters,
    load_adapters,
    merge,
    save_adapters,
)
from looptool_jax.parallel.mesh import MeshConfig, make_mesh
from looptool_jax.parallel.rules import DECODING, TRAINING, param_shardings

CFG = DecoderConfig("qwen3", 64, 32, 48, 2, 4, 2, 16, rope_theta=100.0)
LORA = LoraConfig(rank=3, alpha=6.0)
EQUATIONS = {
    "rd,dhc->rhc": ((5, 16), (16, 4, 8), 1),
    "rhc,hcd->rd": ((5, 4, 8), (4, 8, 16), 2),
    "rd,df->rf": ((5, 16), (16, 24), 1),
}


def draw(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def with_terms(adapters, seed=3):
    """Adapters whose second factor is not zero any more."""
    return {name: {"a": term["a"], "b": 0.1 * draw(seed, *term["b"].shape)} for name, term in adapters.items()}


@pytest.mark.parametrize("equation", EQUATIONS)
def test_products(equation):
    of_x, of_w, inputs = EQUATIONS[equation]
    x, w = draw(0, *of_x), draw(1, *of_w)
    a, b = draw(2, *of_w[:inputs], 3), draw(3, 3, *of_w[inputs:])
    dense = w + 0.5 * jnp.tensordot(a, b, 1)
    np.testing.assert_allclose(project(equation, x, LowRank(w, a, b, 0.5)), jnp.einsum(equation, x, dense), atol=1e-4)
    small = quantized(w, tuple(range(inputs)))
    assert small.qvalue.dtype == jnp.int8 and small.scale.shape == (*[1] * inputs, *of_w[inputs:])
    np.testing.assert_allclose(project(equation, x, small), jnp.einsum(equation, x, qwix.dequantize(small)), atol=1e-4)
    assert jnp.abs(qwix.dequantize(small) - w).max() <= jnp.abs(w).max() / 254 + 1e-6

    def loss(x, a, b, base):
        return jnp.sum(project(equation, x, LowRank(base, a, b, 0.5)) ** 2)

    found = jax.grad(loss, (0, 1, 2))(x, a, b, small)
    expected = jax.grad(loss, (0, 1, 2))(x, a, b, qwix.dequantize(small))
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-3)


def test_products_of_parts():
    x, w, sizes = draw(0, 7, 16), draw(1, 3, 16, 8), jnp.array([2, 0, 4])
    small = quantized(w, (1,))
    expected = project_parts(x, qwix.dequantize(small), sizes)
    np.testing.assert_allclose(project_parts(x, small, sizes)[:6], expected[:6], atol=1e-4)


def run(params, cfg=CFG):
    tokens = jnp.arange(20).reshape(2, 10) % 64
    positions = jnp.broadcast_to(jnp.arange(10), tokens.shape)
    hidden, _ = jax.jit(forward, static_argnums=1)(params, cfg, tokens, positions, jnp.ones_like(tokens))
    return logits(params, cfg, hidden)


def test_a_decoder_with_adapters_is_the_merged_one(tmp_path):
    params = init_params(CFG, jax.random.key(0))
    fresh = init_adapters(CFG, LORA, jax.random.key(1))
    np.testing.assert_array_equal(run(attach(params, fresh, LORA)), run(params))
    adapters = with_terms(fresh)
    merged = run(merge(params, adapters, LORA))
    assert jnp.abs(merged - run(params)).max() > 0.05
    np.testing.assert_allclose(run(attach(params, adapters, LORA)), merged, atol=1e-5)
    save_adapters(adapters, LORA, str(tmp_path), "some/model")
    loaded, sizes = load_adapters(str(tmp_path), CFG)
    assert sizes == LORA
    jax.tree.map(np.testing.assert_array_equal, loaded, adapters)


def test_peft_computes_the_same(tmp_path):
    """Our adapters in torch: PEFT's rule is W + alpha / r · B A on its tensors' names."""
    load_file = pytest.importorskip("safetensors.numpy").load_file
    params = init_params(CFG, jax.random.key(0))
    adapters = with_terms(init_adapters(CFG, LORA, jax.random.key(1)))
    save_adapters(adapters, LORA, str(tmp_path), "some/model")
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    merged = merge(params, adapters, LORA)["layers"]
    shapes = {"q": (4 * 16, 32), "o": (32, 4 * 16), "down": (32, 48)}
    modules = {"q": "self_attn.q_proj", "o": "self_attn.o_proj", "down": "mlp.down_proj"}
    for name, (out, into) in shapes.items():
        key = f"base_model.model.model.layers.1.{modules[name]}"
        change = LORA.alpha / LORA.rank * tensors[f"{key}.lora_B.weight"] @ tensors[f"{key}.lora_A.weight"]
        assert change.shape == (out, into)
        ours = (merged[name] - params["layers"][name])[1]
        np.testing.assert_allclose(ours.reshape(into, out).T, change, atol=1e-5)


def test_int8_layers_are_close_and_small(tmp_path):
    params = init_params(CFG, jax.random.key(0))
    hf.save_pretrained(params, CFG, tmp_path)
    mesh = make_mesh(MeshConfig(1, 4, 2))
    shapes = jax.eval_shape(quantize_layers, params)
    shardings = param_shardings(mesh, axes_of(shapes, logical_axes(CFG)), shapes, DECODING)
    small = hf.load_params(tmp_path, CFG, jnp.float32, shardings, int8=True)
    assert small["layers"]["gate"].qvalue.dtype == jnp.int8 and small["embedding"].dtype == jnp.float32
    assert jax.tree.map(lambda leaf: leaf.sharding, small) == shardings
    for found, expected in zip(jax.tree.leaves(small), jax.tree.leaves(quantize_layers(params)), strict=True):
        np.testing.assert_allclose(found.astype(np.float32), expected.astype(np.float32), rtol=1e-6, atol=1e-6)
    exact = run(params)
    error = jnp.linalg.norm(run(jax.device_get(small)) - exact) / jnp.linalg.norm(exact)
    assert error < 0.05


@pytest.mark.parametrize("rules", [TRAINING, DECODING])
def test_every_array_of_a_weight_gets_a_place(rules):
    mesh = make_mesh(MeshConfig(1, 4, 2))
    adapters = init_adapters(CFG, LoraConfig(rank=4), jax.random.key(1))
    params = attach(quantize_layers(init_params(CFG, jax.random.key(0))), adapters, LORA)
    shardings = param_shardings(mesh, axes_of(params, logical_axes(CFG)), params, rules)
    placed = jax.device_put(params, shardings)
    down = placed["layers"]["down"]
    fsdp = 4 if rules is TRAINING else 1
    assert down.base.qvalue.addressable_shards[0].data.shape == (2, 48 // 2, 32 // fsdp)
    assert down.base.scale.addressable_shards[0].data.shape == (2, 1, 32 // fsdp)
    assert down.a.addressable_shards[0].data.shape == (2, 48 // 2, 4)
    assert down.b.addressable_shards[0].data.shape == (2, 4, 32 // fsdp)
    axes = adapter_axes(CFG, LORA)
    assert axes["down"] == {"a": ("layers", "mlp", "rank"), "b": ("layers", "rank", "embed")}


def test_what_cannot_be(tmp_path):
    with pytest.raises(ModelError, match="positive"):
        LoraConfig(rank=0)
    with pytest.raises(ModelError, match=r"train.lora.targets: some of q, k, .*found \['embedding'\]"):
        LoraConfig(targets=("embedding",))
    with pytest.raises(ModelError, match=r"has no adapter_config\.json"):
        load_adapters(str(tmp_path), CFG)
    adapters = init_adapters(CFG, LORA, jax.random.key(1))
    save_adapters(adapters, LORA, str(tmp_path), "some/model")
    other = DecoderConfig("qwen3", 64, 64, 48, 2, 4, 2, 16)
    with pytest.raises(ModelError, match=r"lora_A.weight is missing or not of shape \[64, 3\]"):
        load_adapters(str(tmp_path), other)


@pytest.fixture
def adapters(tmp_path):
    """A folder of adapters, and change(**settings) of their adapter_config.json."""
    folder = tmp_path / "adapters"
    save_adapters(init_adapters(CFG, LORA, jax.random.key(1)), LORA, folder, "some/model")
    written = json.loads((folder / "adapter_config.json").read_text())

    def change(**settings):
        (folder / "adapter_config.json").write_text(json.dumps({**written, **settings}))

    return str(folder), change


def test_the_base_is_named_so_that_it_is_found_again(tmp_path, monkeypatch, bucket):
    monkeypatch.chdir(tmp_path)
    Path("models/base").mkdir(parents=True)
    Path("models/base.gguf").touch()
    fresh = init_adapters(CFG, LORA, jax.random.key(1))

    def found(folder, base):
        save_adapters(fresh, LORA, folder, base)
        return adapter_base(str(folder))

    for base in ("models/base", "models/base.gguf"):
        here = os.path.join(tmp_path, base)
        assert found(f"{bucket}/run/policy", base) == here
        assert found(tmp_path / "run/policy", base) == here == found(tmp_path / "run/policy", f"file://{here}")
        assert json.loads(Path("run/policy/adapter_config.json").read_text())["base_model_name_or_path"][:5] == "../.."
    for base in ("gs://other/base", "Qwen/Qwen3-8B", "nano/policy", "package:some/model.gguf"):
        assert found(f"{bucket}/run/policy", base) == found(tmp_path / "run/policy", base) == base


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"peft_type": "LOHA"}, "peft_type='LOHA' are not supported; merge"),
        ({"bias": "lora_only"}, "bias='lora_only' are"),
        ({"use_rslora": True}, "use_rslora=True are"),
        ({"use_dora": True}, "use_dora=True are"),
        ({"rank_pattern": {"q_proj": 4}}, "rank_pattern={'q_proj': 4} are"),
        ({"alpha_pattern": {"q_proj": 4}}, "alpha_pattern={'q_proj': 4} are"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa' are"),
        ({"layers_to_transform": [0]}, r"layers_to_transform=\[0\] are"),
        ({"modules_to_save": ["lm_head"]}, r"modules_to_save=\['lm_head'\] are"),
        ({"target_modules": "all-linear"}, "a list of some of q_proj, .* found 'all-linear'; merge"),
        ({"target_modules": ["q_proj", "embed_tokens"]}, "found .*embed_tokens"),
        ({"target_modules": ["q_proj", {}]}, "a list of some of q_proj"),
        ({"target_modules": ["q_proj"]}, "tensor .*down_proj.lora_A.weight is none of a low-rank term"),
        ({"r": "3"}, "no numbers r and lora_alpha, found '3' and 6.0"),
        ({"r": 6}, r"lora_A.weight is missing or not of shape \[32, 6\], flattened"),
    ],
)
def test_adapters_that_mean_something_else_are_refused(adapters, settings, message):
    folder, change = adapters
    change(**settings)
    with pytest.raises(ModelError, match=message):
        load_adapters(folder, CFG)


def test_a_base_that_is_none_is_refused(adapters):
    folder, change = adapters
    for base in (None, 3, ["some/model"], ""):
        change(base_model_name_or_path=base)
        with pytest.raises(ModelError, match="names no base_model_name_or_path"):
            adapter_base(folder)
    change(base_model_name_or_path=".")
    with pytest.raises(ModelError, match="holds adapters itself"):
        adapter_base(folder)
    for text in ("[]", "{", '{"r": 1e999}'):
        Path(folder, "adapter_config.json").write_text(text)
        with pytest.raises(ModelError, match=r"adapter_config\.json (cannot be read|is not a JSON object)"):
            load_adapters(folder, CFG)


def test_adapters_in_bfloat16_are_read(adapters):
    torch = pytest.importorskip("torch")
    io = pytest.importorskip("safetensors.torch")
    folder, _ = adapters
    file = Path(folder, "adapter_model.safetensors")
    before, _ = load_adapters(folder, CFG)
    io.save_file({key: x.to(torch.bfloat16) for key, x in io.load_file(file).items()}, file)
    after, _ = load_adapters(folder, CFG)
    rounded = jax.tree.map(lambda x: x.astype(jnp.bfloat16).astype(np.float32), before)
    jax.tree.map(np.testing.assert_array_equal, after, rounded)


def test_targets_have_one_order(adapters):
    """A policy's adapters must fit the same configuration when they are read again."""
    folder, change = adapters
    assert LoraConfig(targets=("v", "q", "v")) == LoraConfig(targets=("q", "v"))
    change(target_modules=["down_proj", "up_proj", "gate_proj", "o_proj", "v_proj", "k_proj", "q_proj"])
    assert load_adapters(folder, CFG)[1] == LORA
