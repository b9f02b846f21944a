"""A tiny random decoder with large weights, and a plain decoder to compare the engine with."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from looptool_jax.inference.batch import Request
from looptool_jax.models import decoder, hf
from looptool_jax.models.config import DecoderConfig

CFG = DecoderConfig(
    "qwen3", vocab_size=48, hidden_size=32, intermediate_size=64, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8
)
EOS, PAD = (3, 5), 0
LONGEST = 64
ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Tiny:
    cfg: DecoderConfig
    params: decoder.Params
    other_params: decoder.Params
    logprobs: Callable[[Sequence[int]], np.ndarray]
    """Log-softmax after every token of a sequence, by one forward pass over all of it: [len, vocab]."""

    def greedy(self, prompt: Sequence[int], max_new: int) -> list[int]:
        """Step by step, the whole sequence anew for every token."""
        tokens = list(prompt)
        while len(tokens) < len(prompt) + max_new and (len(tokens) == len(prompt) or tokens[-1] not in EOS):
            tokens.append(int(self.logprobs(tokens)[-1].argmax()))
        return tokens[len(prompt) :]

    def answer_logprobs(self, prompt: Sequence[int], answer: Sequence[int]) -> np.ndarray:
        table = self.logprobs([*prompt, *answer])
        return table[np.arange(len(prompt) - 1, len(prompt) + len(answer) - 1), list(answer)]


def make_params(seed: int) -> decoder.Params:
    params = jax.jit(decoder.init_params, static_argnums=0)(CFG, jax.random.key(seed))
    return jax.tree.map(lambda leaf: leaf * 4 if leaf.ndim > 2 else leaf, params) | {
        "embedding": params["embedding"] * 25
    }


@pytest.fixture(scope="session")
def tiny() -> Tiny:
    params = make_params(0)

    @jax.jit
    def table(tokens, length):
        positions = jnp.arange(LONGEST)[None]
        hidden, _ = decoder.forward(params, CFG, tokens[None], positions, jnp.where(positions < length, length, 0))
        return jax.nn.log_softmax(decoder.logits(params, CFG, hidden[0]))

    def logprobs(tokens: Sequence[int]) -> np.ndarray:
        padded = np.zeros(LONGEST, np.int32)
        padded[: len(tokens)] = tokens
        return np.asarray(table(padded, len(tokens)))[: len(tokens)]

    return Tiny(CFG, params, make_params(1), logprobs)


@pytest.fixture(scope="session")
def requests() -> list[Request]:
    """Ragged prompts in several buckets, greedy and sampled, ends early and late."""
    rng = np.random.default_rng(0)
    lengths, limits = (1, 16, 32, 17, 5, 31, 29), (12, 7, 12, 1, 12, 9, 12)
    return [
        Request(f"r{i}", rng.integers(6, 48, length).tolist(), (9, i), (0.0, 1.0, 1.5)[i % 3], limit)
        for i, (length, limit) in enumerate(zip(lengths, limits, strict=True))
    ]


@pytest.fixture(scope="session")
def make_engine(tiny) -> Callable:
    from looptool_jax.inference.engine import DecoderEngine

    def make(**options):
        sizes = {"slots": 3, "prompt_len": 32, "answer_len": 12, "steps_per_sync": 5, "eos_ids": EOS, "pad_id": PAD}
        return DecoderEngine(tiny.cfg, **sizes | options)

    return make


@pytest.fixture(scope="session")
def engine(make_engine):
    """Three slots of groups of four on one device."""
    return make_engine(group=4)


@pytest.fixture(scope="session")
def single(make_engine):
    """Three slots of one answer on one device."""
    return make_engine(group=1, steps_per_sync=4, prefill_batch=2)


def _tokenizer() -> Tokenizer:
    """One token for each byte, and the control tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token) for token in ("<|endoftext|>", "<|im_start|>", "<|im_end|>")])
    return tokenizer


@pytest.fixture(scope="session")
def byte_cfg() -> DecoderConfig:
    return DecoderConfig(
        "qwen3", vocab_size=264, hidden_size=32, intermediate_size=64, num_layers=2, num_heads=4, num_kv_heads=2,
        head_dim=8,
    )  # fmt: skip


@pytest.fixture(scope="session")
def folder(byte_cfg, tmp_path_factory):
    """A random model that reads bytes, as a Hugging Face folder."""
    path = tmp_path_factory.mktemp("model")
    _tokenizer().save(str(path / "tokenizer.json"))
    hf.save_pretrained(jax.jit(decoder.init_params, static_argnums=0)(byte_cfg, jax.random.key(0)), byte_cfg, path)
    return path


class ServerProcess:
    """`looptool serve` in a process of its own, at a free port. It is waited for where its address is asked for."""

    def __init__(self, *args: str, **environment: str) -> None:
        flags = "--xla_backend_optimization_level=0"  # as in the tests' own process, but one device
        env = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), **environment}
        code = "from looptool_jax.cli import main; main()"
        command = [sys.executable, "-c", code, "serve", "--port", "0", *args]
        self.process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    @functools.cached_property
    def address(self) -> str:
        line = self.process.stdout.readline()
        assert " at " in line, self.process.communicate(timeout=60)
        for pipe in (self.process.stdout, self.process.stderr):
            threading.Thread(target=pipe.read, daemon=True).start()
        return line.split(" at ")[1].strip()

    def get(self, path: str) -> tuple[int, dict]:
        return self.send("GET", path)

    def send(self, method: str, path: str, body: object = None, **headers: str) -> tuple[int, dict]:
        """Status and JSON of an answer; `body` is sent as it is where it is bytes. `headers` of the answer are kept."""
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json", **headers}
        base = self.address.removesuffix("/v1")
        request = urllib.request.Request(f"{base}{path}", data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                status, raw, self.headers = answer.status, answer.read(), answer.headers
        except urllib.error.HTTPError as answer:
            status, raw, self.headers = answer.code, answer.read(), answer.headers
        return status, json.loads(raw)

    def stop(self) -> int:
        """Ends it as a person would, by its id; its exit status."""
        if self.process.poll() is None:
            self.process.terminate()
        try:
            return self.process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise


@pytest.fixture(scope="module")
def start_server():
    """Starts servers; all are stopped at the end of the module."""
    started: list[ServerProcess] = []

    def start(*args: str, **environment: str) -> ServerProcess:
        started.append(ServerProcess(*args, **environment))
        return started[-1]

    yield start
    for server in started:
        server.stop()
