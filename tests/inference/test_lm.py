"""Language models: read from a folder, placed on a mesh, with one compiled engine for all weights."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from looptool_jax.inference.batch import Request, generate
from looptool_jax.inference.lm import LanguageModel, ModelConfig, load_language_model
from looptool_jax.models import decoder
from looptool_jax.models.config import ARCHITECTURES, ModelError
from looptool_jax.parallel.mesh import MeshConfig, make_mesh
from looptool_jax.toolcall import ChatError, Message
from looptool_jax.toolcall.formats import FORMATS

init = jax.jit(decoder.init_params, static_argnums=0)
forward = jax.jit(decoder.forward, static_argnums=1)
SIZES = {"slots": 2, "prompt_len": 64, "answer_len": 8, "steps_per_sync": 4}


def test_a_model_is_read_and_placed_for_decoding(folder, byte_cfg):
    mesh = make_mesh(MeshConfig(fsdp=2, tensor=2), jax.devices()[:4])
    lm = load_language_model(ModelConfig(str(folder), "qwen3", "float32"), mesh)
    assert lm.cfg == byte_cfg
    assert lm.params["layers"]["gate"].sharding.spec == jax.sharding.PartitionSpec(None, None, "tensor")


def test_a_loaded_model_answers(folder):
    lm = load_language_model(ModelConfig(str(folder), "qwen3", "float32"), make_mesh(MeshConfig(), jax.devices()[:1]))
    prompt = lm.tokenizer.encode_prompt([Message("user", "hello")], (), False)
    [[completion]] = generate(lm.engine(**SIZES), lm.params, [Request("a", prompt, (0, 0), 0.0, 8)])
    assert 1 <= len(completion.tokens) <= 8
    tokens = jnp.array([prompt + completion.tokens])
    hidden, _ = forward(
        lm.params, lm.cfg, tokens, jnp.arange(tokens.shape[1])[None], jnp.full_like(tokens, tokens.shape[1])
    )
    table = decoder.logits(lm.params, lm.cfg, hidden[0])
    assert completion.tokens == table[len(prompt) - 1 : -1].argmax(-1).tolist()


def test_engines_are_shared_by_all_weights_and_kept_apart_by_size(folder, byte_cfg):
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    lm = load_language_model(ModelConfig(str(folder), "qwen3", "float32"), mesh)
    other = lm.with_params(init(byte_cfg, jax.random.key(1)))
    assert other.engine(**SIZES) is lm.engine(**SIZES)
    assert load_language_model(ModelConfig(str(folder), "qwen3", "float32"), mesh).engine(**SIZES) is lm.engine(**SIZES)
    assert lm.engine(**SIZES, group=2) is not lm.engine(**SIZES)
    bfloat = load_language_model(ModelConfig(str(folder), "qwen3", "bfloat16"), mesh)
    assert bfloat.engine(**SIZES).dtype == jnp.bfloat16
    prompt = [5, 6, 7]
    [[completion]] = generate(bfloat.engine(**SIZES), bfloat.params, [Request("a", prompt, (0, 0), 0.0, 8)])
    assert np.isfinite(completion.logprobs).all()


def test_what_does_not_fit_is_refused(folder, byte_cfg):
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    lm = load_language_model(ModelConfig(str(folder), "qwen3", "float32"), mesh)
    with pytest.raises(ModelError, match=r"tokenizer has 259 tokens, the model only 200"):
        LanguageModel.of(dataclasses.replace(byte_cfg, vocab_size=200), lm.params, lm.tokenizer, mesh)
    with pytest.raises(ModelError, match="dtype: expected one of float32, bfloat16, int8, found 'int4'"):
        ModelConfig(str(folder), "qwen3", "int4")
    with pytest.raises(ModelError, match="attention: expected one of auto, xla, splash, found 'flash'"):
        ModelConfig(str(folder), "qwen3", attention="flash")
    with pytest.raises(ModelError, match="splash is for TPUs, the devices here are of kind cpu"):
        load_language_model(ModelConfig(str(folder), "qwen3", attention="splash"), mesh)


def test_the_chat_format_is_never_chosen_silently(folder):
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    with pytest.raises(ChatError) as caught:
        load_language_model(ModelConfig(str(folder)), mesh)
    for words in (str(folder), "no chat format is set", "llama3.1", "model_type qwen3", "fit qwen3;", "policy.format"):
        assert words in str(caught.value)
    for name, words in (("llama3.1", "does not belong"), ("chatml", "unknown chat format 'chatml'")):
        with pytest.raises(ChatError, match=words):
            load_language_model(ModelConfig(str(folder), name), mesh)


def test_every_architecture_has_a_chat_format():
    assert {*ARCHITECTURES} == {each for chat in FORMATS.values() for each in chat.architectures}


def test_jetstream_is_imported_by_the_first_engine_only():
    code = (
        "import sys, looptool_jax.inference.lm, looptool_jax.inference.answers\n"
        "assert not {'jetstream', 'tensorflow', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
