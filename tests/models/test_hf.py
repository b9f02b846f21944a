"""Weight files: shards, round trips through transformers, and what is said about damaged ones."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from looptool_jax.models import hf
from looptool_jax.models.config import DecoderConfig, Experts, ModelError
from looptool_jax.models.decoder import abstract_params, forward, logits

SIZES = {"vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_layers": 2}
HEADS = {"num_heads": 4, "num_kv_heads": 2, "head_dim": 16}
QWEN3 = DecoderConfig("qwen3", **SIZES, **HEADS)
LLAMA = DecoderConfig("llama", **SIZES, **HEADS, tie_embeddings=False)
QWEN2 = DecoderConfig("qwen2", **SIZES, **HEADS)
MOE = DecoderConfig("qwen3_moe", **SIZES, **HEADS, tie_embeddings=False, experts=Experts(4, 2, 12, normalize=True))


def random_params(cfg, dtype=jnp.float32):
    rng = np.random.default_rng(0)
    shapes = abstract_params(cfg, dtype)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), dtype), shapes)


def assert_same(ours, theirs):
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("cfg", [QWEN3, LLAMA, QWEN2, MOE], ids=lambda cfg: cfg.architecture)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_round_trip(cfg, dtype, tmp_path):
    params = random_params(cfg, dtype)
    hf.save_pretrained(params, cfg, tmp_path)
    assert DecoderConfig.from_pretrained(tmp_path) == cfg
    assert_same(hf.load_params(tmp_path, cfg, dtype), params)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


def test_transformers_reads_our_folders_and_our_shards(tmp_path, monkeypatch, torch_logits):
    transformers = pytest.importorskip("transformers")
    tokens = np.random.default_rng(0).integers(0, 61, (2, 16))
    rows = jnp.broadcast_to(jnp.arange(16), (2, 16))
    for cfg, limit in ((QWEN3, hf.SHARD_BYTES), (LLAMA, 20_000), (QWEN2, hf.SHARD_BYTES), (MOE, 20_000)):
        monkeypatch.setattr(hf, "SHARD_BYTES", limit)
        params = random_params(cfg)
        folder = tmp_path / cfg.architecture
        hf.save_pretrained(params, cfg, folder)
        assert (folder / "model.safetensors.index.json").exists() == (limit == 20_000)
        model, report = transformers.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
        assert not any(report.values()), report
        hidden, _ = jax.jit(forward, static_argnums=1)(params, cfg, jnp.asarray(tokens), rows, jnp.full((2, 16), 16))
        expected = torch_logits(model.float(), tokens)
        assert np.abs(np.asarray(logits(params, cfg, hidden)) - expected).max() <= 1e-4 * np.abs(expected).max()
        assert_same(hf.load_params(folder, cfg), params)


def test_their_sharded_and_half_precision_files(make_hf_model, torch_logits):
    torch = pytest.importorskip("torch")

    model, folder = make_hf_model("qwen3", save={"max_shard_size": "20KB"})
    assert len(list(folder.glob("*.safetensors"))) > 3
    cfg = DecoderConfig.from_pretrained(folder)
    whole = hf.load_params(folder, cfg)
    np.testing.assert_array_equal(whole["layers"]["down"][1], model.model.layers[1].mlp.down_proj.weight.detach().T)
    for file in folder.glob("*.safetensors*"):
        file.unlink()
    model.to(torch.bfloat16).save_pretrained(folder)
    half = hf.load_params(folder, cfg)
    assert half["embedding"].dtype == jnp.float32
    assert_same(half, jax.tree.map(lambda x: x.astype(jnp.bfloat16).astype(jnp.float32), whole))


def test_saving_again_replaces_shards_and_copies_the_tokenizer(tmp_path, monkeypatch):
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "notes.txt"):
        (source / name).write_text(f'{{"name": "{name}"}}')
    params = random_params(QWEN3)
    with monkeypatch.context() as patch:
        patch.setattr(hf, "SHARD_BYTES", 20_000)
        hf.save_pretrained(params, QWEN3, out)
    later = jax.tree.map(lambda x: 2 * x, params)
    hf.save_pretrained(later, QWEN3, out, tokenizer_dir=source)
    hf.save_pretrained(later, QWEN3, out, tokenizer_dir=out)
    assert_same(hf.load_params(out, QWEN3), later)
    with monkeypatch.context() as patch:
        patch.setattr(hf, "SHARD_BYTES", 20_000)
        hf.save_pretrained(params, QWEN3, out)
    assert_same(hf.load_params(out, QWEN3), params)
    assert (out / "tokenizer.json").read_text() == '{"name": "tokenizer.json"}'
    names = {path.name for path in out.iterdir()}
    assert {"tokenizer_config.json", "generation_config.json"} < names and "notes.txt" not in names
    with pytest.raises(ModelError, match=r"has no tokenizer\.json"):
        hf.save_pretrained(params, QWEN3, out, tokenizer_dir=tmp_path)


def test_loading_onto_a_mesh(tmp_path):
    mesh = jax.make_mesh((8,), ("x",))
    place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, "x"))
    shardings = jax.tree.map(lambda leaf: split if leaf.ndim > 2 else place, abstract_params(QWEN3))
    shardings["layers"]["o"] = place
    params = random_params(QWEN3)
    hf.save_pretrained(params, QWEN3, tmp_path)
    loaded = hf.load_params(tmp_path, QWEN3, shardings=shardings)
    assert_same(loaded, params)
    assert loaded["layers"]["up"].sharding == split
    hf.save_pretrained(loaded, QWEN3, tmp_path / "again")
    assert_same(hf.load_params(tmp_path / "again", QWEN3), params)


def damaged(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


KEY = "model.layers.1.mlp.up_proj.weight"
DAMAGES = {
    "missing": (lambda t: t.pop(KEY), f"tensor {KEY} is missing"),
    "unexpected": (
        lambda t: t.update({"model.layers.2.mlp.up_proj.weight": t[KEY]}),
        "unexpected tensor model.layers.2",
    ),
    "bias": (lambda t: t.update({"model.layers.0.self_attn.q_proj.bias": np.zeros(64, np.float32)}), "q_proj.bias"),
    "shape": (
        lambda t: t.update({KEY: t[KEY][:-1].copy()}),
        f"tensor {KEY} has shape (47, 32), the config asks for (48, 32)",
    ),
    "integers": (lambda t: t.update({KEY: t[KEY].astype(np.int32)}), f"tensor {KEY} is int32"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_wrong_tensors_are_named(damage, tmp_path):
    hf.save_pretrained(random_params(QWEN3), QWEN3, tmp_path)
    change, message = DAMAGES[damage]
    damaged(tmp_path, change)
    with pytest.raises(ModelError) as caught:
        hf.load_params(tmp_path, QWEN3)
    assert message in str(caught.value) and str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


def test_damaged_folders(tmp_path, monkeypatch):
    with pytest.raises(ModelError, match="is not a folder"):
        hf.load_params("HuggingFaceTB/SmolLM2-135M-Instruct", LLAMA)
    with pytest.raises(ModelError, match=r"neither model\.safetensors nor"):
        hf.load_params(tmp_path, LLAMA)
    hf.save_pretrained(random_params(QWEN3), QWEN3, tmp_path)
    file = tmp_path / "model.safetensors"
    whole = file.read_bytes()
    for part in (whole[: len(whole) // 2], whole[:5], b"", b"\xff" * 64):
        file.write_bytes(part)
        with pytest.raises(ModelError, match=r"model\.safetensors is not a complete safetensors file"):
            hf.load_params(tmp_path, QWEN3)
    file.unlink()
    monkeypatch.setattr(hf, "SHARD_BYTES", 20_000)
    hf.save_pretrained(random_params(QWEN3), QWEN3, tmp_path)
    index = tmp_path / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    moved = {**content["weight_map"], KEY: content["weight_map"]["model.norm.weight"]}
    index.write_text(json.dumps({"weight_map": moved}))
    with pytest.raises(ModelError, match=rf"tensor {KEY} is missing, though model\.safetensors\.index\.json says"):
        hf.load_params(tmp_path, QWEN3)
    index.write_text(json.dumps({"weight_map": {**moved, KEY: "gone.safetensors"}}))
    with pytest.raises(ModelError, match=r"gone\.safetensors is missing, though model\.safetensors\.index\.json"):
        hf.load_params(tmp_path, QWEN3)
    for text in ("{", "[]", '{"weight_map": {"a": 1}}'):
        index.write_text(text)
        with pytest.raises(ModelError, match="is not a safetensors index"):
            hf.load_params(tmp_path, QWEN3)


def test_a_tied_model_may_carry_its_head_twice(tmp_path):
    params = random_params(QWEN3)
    hf.save_pretrained(params, QWEN3, tmp_path)
    damaged(tmp_path, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"]}))
    assert_same(hf.load_params(tmp_path, QWEN3), params)
