"""Numbers of tiny random Hugging Face models, and proof that the comparison would notice a wrong model."""

from dataclasses import replace
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from looptool_jax.models import decoder
from looptool_jax.models.config import DecoderConfig
from looptool_jax.models.decoder import forward, logits
from looptool_jax.models.hf import load_params
from looptool_jax.models.keymap import entries

TOLERANCE = 1e-4  # of logits whose standard deviation is above 1
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
CASES = {
    "qwen2": ("qwen2", {"tie_word_embeddings": True}),
    "qwen2-untied": ("qwen2", {"tie_word_embeddings": False}),
    "qwen3": ("qwen3", {"tie_word_embeddings": True}),
    "qwen3-untied": ("qwen3", {"tie_word_embeddings": False}),
    "qwen3_moe": ("qwen3_moe", {"tie_word_embeddings": False}),
    "qwen3_moe-tied": ("qwen3_moe", {"tie_word_embeddings": True, "norm_topk_prob": False}),
    "llama": ("llama", {"tie_word_embeddings": False}),
    "llama3-rope": ("llama", {"tie_word_embeddings": True, "rope_parameters": LLAMA3}),
}


def run(params, cfg, tokens, positions=None, ends=None):
    tokens = jnp.asarray(tokens)
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape) if positions is None else positions
    ends = jnp.full_like(tokens, tokens.shape[1]) if ends is None else ends
    return np.asarray(compiled(decoder.tree_attend)(params, cfg, tokens, positions, ends))


@cache
def compiled(attention):
    """Logits of whole rows; compiled once per configuration (and again where a test replaces the attention)."""
    return jax.jit(lambda params, cfg, *batch: logits(params, cfg, forward(params, cfg, *batch)[0]), static_argnums=1)


def load(folder):
    cfg = DecoderConfig.from_pretrained(folder)
    return load_params(folder, cfg), cfg


def tokens_of(rows, length, seed=0):
    return np.random.default_rng(seed).integers(0, 101, (rows, length))


@pytest.mark.parametrize("case", CASES)
def test_logits(case, make_hf_model, torch_logits):
    architecture, overrides = CASES[case]
    model, folder = make_hf_model(architecture, **overrides)
    params, cfg = load(folder)
    tokens = tokens_of(2, 40)
    expected = torch_logits(model, tokens)
    assert expected.std() > 1.0
    difference = np.abs(run(params, cfg, tokens) - expected).max()
    print(f"largest difference {difference:.1e} of logits with standard deviation {expected.std():.1f}")
    assert difference <= TOLERANCE


@pytest.mark.parametrize("architecture", ["qwen2", "qwen3", "qwen3_moe", "llama"])
def test_every_layer_and_the_cache(architecture, make_hf_model):
    torch = pytest.importorskip("torch")

    model, folder = make_hf_model(architecture)
    params, cfg = load(folder)
    tokens = tokens_of(2, 12)
    ids = jnp.asarray(tokens)
    positions = jnp.broadcast_to(jnp.arange(12), ids.shape)
    with torch.no_grad():
        theirs = model(torch.as_tensor(tokens), output_hidden_states=True, use_cache=True)
        normed = [model.model.norm(state).numpy() for state in theirs.hidden_states[:-1]]
    for depth in range(1, cfg.num_layers + 1):
        part = {**params, "layers": jax.tree.map(lambda leaf, depth=depth: leaf[:depth], params["layers"])}
        step = jax.jit(forward, static_argnums=1)
        hidden, kv = step(part, replace(cfg, num_layers=depth), ids, positions, jnp.full_like(ids, 12))
        expected = normed[depth] if depth < cfg.num_layers else theirs.hidden_states[-1].numpy()
        np.testing.assert_allclose(hidden, expected, atol=TOLERANCE)
    for layer, cached in enumerate(theirs.past_key_values.layers):
        np.testing.assert_allclose(kv.k[layer], cached.keys.numpy().swapaxes(1, 2), atol=TOLERANCE)
        np.testing.assert_allclose(kv.v[layer], cached.values.numpy().swapaxes(1, 2), atol=TOLERANCE)


@pytest.mark.parametrize("architecture", ["qwen2", "qwen3_moe"])
def test_gradients(architecture, make_hf_model):
    """Of biases, and through the router: a sum of log-probabilities by every parameter, in their layout."""
    torch = pytest.importorskip("torch")

    model, folder = make_hf_model(architecture, tie_word_embeddings=False)
    params, cfg = load(folder)
    tokens = tokens_of(2, 12)
    logprobs = torch.log_softmax(model(torch.as_tensor(tokens)).logits[:, :-1], dim=-1)
    logprobs.gather(2, torch.as_tensor(tokens[:, 1:, None])).sum().backward()
    theirs = {name: weight.grad.numpy() for name, weight in model.named_parameters()}

    @jax.jit
    @jax.grad
    def gradient(params):
        ids = jnp.asarray(tokens)
        rows = jnp.broadcast_to(jnp.arange(12), ids.shape)
        hidden, _ = forward(params, cfg, ids, rows, jnp.full_like(ids, 12), remat="full")
        scores = jax.nn.log_softmax(logits(params, cfg, hidden[:, :-1]))
        return jnp.take_along_axis(scores, ids[:, 1:, None], -1).sum()

    ours = gradient(params)
    for entry in entries(cfg):
        stacked = ours[entry.name] if entry.layer is None else ours["layers"][entry.name]
        found, expected = entry.to_hf(np.asarray(stacked)[entry.index]), theirs_of(entry, theirs)
        assert np.linalg.norm(found - expected) <= 1e-4 * np.linalg.norm(expected) + 1e-6, entry.key


def theirs_of(entry, gradients):
    """In memory they keep the experts of a layer in two tensors, gate above up."""
    if entry.expert is None:
        return gradients[entry.key]
    prefix = f"model.layers.{entry.layer}.mlp.experts"
    if entry.name == "down":
        return gradients[f"{prefix}.down_proj"][entry.expert]
    half = slice(0, entry.shape[0]) if entry.name == "gate" else slice(entry.shape[0], None)
    return gradients[f"{prefix}.gate_up_proj"][entry.expert, half]


@pytest.mark.parametrize("architecture", ["qwen2", "qwen3", "qwen3_moe"])
def test_padded_and_packed_rows(architecture, make_hf_model, torch_logits):
    model, folder = make_hf_model(architecture)
    params, cfg = load(folder)
    first, second = tokens_of(1, 9, 1), tokens_of(1, 14, 2)
    alone = [torch_logits(model, first)[0], torch_logits(model, second)[0]]
    packed = np.zeros((1, 30), np.int64)
    packed[0, 3:12], packed[0, 12:26] = first, second
    ends, positions = np.zeros((2, 1, 30), np.int32)
    ends[0, 3:12], ends[0, 12:26] = 12, 26
    positions[0, 3:12], positions[0, 12:26] = np.arange(9), np.arange(14)
    found = run(params, cfg, packed, jnp.asarray(positions), jnp.asarray(ends))[0]
    assert np.abs(found[3:12] - alone[0]).max() <= TOLERANCE
    assert np.abs(found[12:26] - alone[1]).max() <= TOLERANCE


def see_everything(q, k, v, ends):
    return jax.nn.dot_product_attention(q, k, v)


def replaced(params, **leaves):
    return {**params, "layers": {**params["layers"], **leaves}}


def swap_heads(params, name, axis):
    return replaced(params, **{name: jnp.roll(params["layers"][name], 1, axis=axis)})


def without(params, name):
    return replaced(params, **{name: jnp.ones_like(params["layers"][name])})


def with_experts(cfg, **changes):
    return replace(cfg, experts=replace(cfg.experts, **changes))


def wrong_models(params, cfg):
    yield "rope theta", params, replace(cfg, rope_theta=1.1 * cfg.rope_theta)
    yield "no rope", params, replace(cfg, rope_theta=1e30)
    yield "norm epsilon", params, replace(cfg, rms_norm_eps=1e-2)
    for name in ("q_norm", "k_norm", "attention_norm", "mlp_norm"):
        if name in params["layers"]:
            yield name, without(params, name), cfg
    if cfg.experts is not None:
        yield "normalisation of the router", params, with_experts(cfg, normalize=not cfg.experts.normalize)
        yield "fewer experts", params, with_experts(cfg, per_token=cfg.experts.per_token - 1)
        yield "order of the experts", replaced(params, router=params["layers"]["router"][..., ::-1]), cfg
        yield "expert of gate", replaced(params, gate=params["layers"]["gate"][:, ::-1]), cfg
    if cfg.qkv_bias:
        for name in ("q_bias", "k_bias", "v_bias"):
            yield f"no {name}", replaced(params, **{name: jnp.zeros_like(params["layers"][name])}), cfg
            yield f"head order of {name}", swap_heads(params, name, 1), cfg
    yield "final norm", {**params, "final_norm": jnp.ones_like(params["final_norm"])}, cfg
    for name, axis in {"q": 2, "k": 2, "v": 2, "o": 1}.items():
        yield f"head order of {name}", swap_heads(params, name, axis), cfg
    yield "gate and up", replaced(params, gate=params["layers"]["up"]), cfg
    yield "layer order", {**params, "layers": jax.tree.map(lambda x: x[::-1], params["layers"])}, cfg
    grouped = partial(jnp.reshape, shape=(3, 48, 6, 16))
    interleaved = jnp.swapaxes(params["layers"]["q"].reshape(3, 48, 2, 3, 16), 2, 3)
    yield "head groups", replaced(params, q=grouped(interleaved)), cfg


@pytest.mark.parametrize("architecture", ["qwen2", "qwen3", "qwen3_moe"])
def test_a_wrong_model_would_be_noticed(architecture, make_hf_model, torch_logits, monkeypatch):
    model, folder = make_hf_model(architecture)
    params, cfg = load(folder)
    tokens = tokens_of(2, 24)
    expected = torch_logits(model, tokens)
    for name, wrong, wrong_cfg in wrong_models(params, cfg):
        assert np.abs(run(wrong, wrong_cfg, tokens) - expected).max() > 1000 * TOLERANCE, name
    monkeypatch.setattr(decoder, "tree_attend", see_everything)
    assert np.abs(run(params, cfg, tokens) - expected).max() > 1000 * TOLERANCE
