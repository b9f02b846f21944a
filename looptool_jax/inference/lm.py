"""A language model in memory: decoder, weights, tokenizer and the mesh it lies on."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from looptool_jax.inference.scoring import Scorer
from looptool_jax.limits import above, at_least
from looptool_jax.models import decoder, hf, linear, lora
from looptool_jax.models.config import DecoderConfig, ModelError
from looptool_jax.models.decoder import Params
from looptool_jax.models.sources import model_folder
from looptool_jax.parallel import rules
from looptool_jax.parallel.residents import Resident, Turns
from looptool_jax.toolcall import ChatError, ChatTokenizer, check_format, read_tokenizer

if TYPE_CHECKING:
    from looptool_jax.inference.engine import DecoderEngine


@dataclass(frozen=True)
class EndpointConfig:
    """A server that speaks OpenAI's chat API: vLLM, llama.cpp, a hosted model.

    url: base of the API, what comes before /chat/completions (mostly it ends in /v1). model: the model's name there.
    api_key_env: the environment variable that holds the key; null: no key is sent. concurrency: requests at a time.
    timeout_s: seconds within which a reply is there. tries: attempts at one reply. max_requests: the most of a whole
    run, failed attempts included; null: no limit. max_tokens: the most of a whole run, of prompts and replies as the
    server counts them; null: no limit.
    """

    url: str = ""
    model: str = ""
    api_key_env: str | None = None
    concurrency: int = 16
    timeout_s: float = 600.0
    tries: int = 8
    max_requests: int | None = None
    max_tokens: int | None = None

    def __post_init__(self) -> None:
        try:
            url = urlsplit(self.url)
            whole = url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
        except ValueError:
            whole = False
        if not whole:
            raise ModelError("endpoint.url: expected the base of an API, such as http://127.0.0.1:8000/v1")
        if "@" in url.netloc or url.query or url.fragment:  # not shown: a password may stand there
            raise ModelError("endpoint.url: no user, password or query in it; name a key by endpoint.api_key_env")
        if not self.model:
            raise ModelError("endpoint.model: no model is named")
        if self.api_key_env is not None and not re.fullmatch(r"[A-Z_][A-Z0-9_]*", self.api_key_env):
            raise ModelError(
                "endpoint.api_key_env: expected the name of an environment variable in capitals, such as "
                "OPENAI_API_KEY, never the key itself"
            )
        for name in ("concurrency", "tries"):
            at_least(f"endpoint.{name}", getattr(self, name), 1)
        above("endpoint.timeout_s", self.timeout_s, 0)
        for name in ("max_requests", "max_tokens"):
            if (limit := getattr(self, name)) is not None:
                at_least(f"endpoint.{name}", limit, 1)

    @property
    def name(self) -> str:
        """The model and where it is, for people."""
        return f"{self.model} at {self.url}"


@dataclass(frozen=True)
class ModelConfig:
    """path: a folder in Hugging Face's layout (weights, config.json, tokenizer.json), local or in an object store, or a
    hub id; a GGUF file, or package:NAME/FILE; null where `endpoint` is set.
    format: of its chats, one of qwen3, qwen2.5, smollm2, hermes and llama3.1. It has to be set: families share control
    tokens, so the wrong one would not be noticed.
    dtype: of the weights in memory, "float32", "bfloat16" or "int8" (the matrices of the layers; for a judge or
    generator, or under adapters).
    thinking: whether the model may think before it answers (Qwen3).
    attention: of whole rows, "splash" (TPU), "xla", or "auto": splash where the devices are TPUs.
    endpoint: of a judge or generator, the server that answers in place of a model on the mesh; the settings above, of
    which `path` and `thinking` must not be set, say nothing about it."""

    path: str | None = None
    format: str = ""
    dtype: str = "bfloat16"
    thinking: bool = False
    attention: str = "auto"
    endpoint: EndpointConfig | None = None

    def __post_init__(self) -> None:
        if self.endpoint and self.path:
            raise ModelError(
                f"path={self.path} and endpoint.url={self.endpoint.url} name two models; set one of them to null"
            )
        if self.endpoint and self.thinking:
            raise ModelError("thinking: not for a model behind an endpoint; whether it thinks is the server's setting")
        for name, value, known in (
            ("dtype", self.dtype, ("float32", "bfloat16", "int8")),
            ("attention", self.attention, ("auto", "xla", "splash")),
        ):
            if value not in known:
                raise ModelError(f"model.{name}: expected one of {', '.join(known)}, found {value!r}")

    @property
    def place(self) -> str:
        """The path of a model on the mesh. Raises ModelError where there is none."""
        if not self.path:
            raise ModelError(
                "a model of this run has no path; set policy.path, judge_model.path or generator_model.path, or "
                "endpoint in place of a judge's or generator's path"
            )
        return self.path


@dataclass(frozen=True, eq=False)
class LanguageModel:
    """weights: the parameters; whoever asks for them gets them on the devices, placed as decoding wants them.
    dtype: of activations and caches. folder: its tokenizer files, which travel with an export (empty: made in memory).
    source: where the weights are read from. name: what the configuration calls that. adapters: low-rank terms beside
    the weights, in the dtype that they were given in. int8: whether the matrices of the layers are."""

    cfg: DecoderConfig
    weights: Resident
    tokenizer: ChatTokenizer
    mesh: Mesh
    dtype: str
    attention: decoder.Attention = "xla"
    folder: str = ""
    source: str = ""
    name: str = ""
    adapters: tuple[lora.Adapters, lora.LoraConfig] | None = None
    int8: bool = False

    def __post_init__(self) -> None:
        if self.tokenizer.vocab_size > self.cfg.vocab_size:
            raise ModelError(
                f"the tokenizer has {self.tokenizer.vocab_size} tokens, the model only {self.cfg.vocab_size}; "
                "they do not belong together"
            )

    @staticmethod
    def of(cfg: DecoderConfig, params: Params, tokenizer: ChatTokenizer, mesh: Mesh) -> LanguageModel:
        """A model whose weights were made in memory. They may be sharded in any way."""
        return LanguageModel(cfg, Resident(params), tokenizer, mesh, params["embedding"].dtype.name)

    @property
    def params(self) -> Params:
        """The parameters on the devices, adapters beside them. It is this model's turn from here on."""
        params = self.weights.get()
        if self.adapters is None:
            return params
        adapters, config = self.adapters
        return lora.attach(params, linear.cast(adapters, self.dtype), config)

    def with_params(self, params: Params) -> LanguageModel:
        """The same model with other weights of the same shapes. It shares all compiled engines."""
        return replace(self, weights=Resident(params))

    def with_adapters(self, adapters: lora.Adapters, config: lora.LoraConfig) -> LanguageModel:
        """The same weights with low-rank terms, which are placed as decoding wants them."""
        axes = lora.adapter_axes(self.cfg, config)
        placed = jax.device_put(adapters, rules.param_shardings(self.mesh, axes, adapters, rules.DECODING))
        return replace(self, adapters=(placed, config))

    def master_params(self, shardings: Params) -> Params:
        """A float32 copy of the weights, adapters merged, laid out by `shardings`: from the files where there are any,
        so that what the memory's dtype would round is kept."""
        if self.weights.can_be_made:
            self.weights.drop()
            params = hf.load_params(self.source, self.cfg, jnp.float32, shardings)
        else:
            split = jax.device_put(self.weights.get(), shardings)  # before the cast: whole, float32 might not fit
            params = jax.tree.map(lambda x: jnp.array(x, jnp.float32, copy=True), split)
        return lora.merge(params, *self.adapters) if self.adapters else params

    def engine(self, **sizes: Any) -> DecoderEngine:
        """The engine of these sizes and limits (arguments of `DecoderEngine`). A process makes and compiles one for
        all models that agree in everything but weights. It holds no arrays. Raises EngineError or ShardingError where
        the sizes do not fit."""
        return _engine(
            self.cfg, self.mesh, self.tokenizer.eos_ids, self.tokenizer.pad_id, self.dtype, self.attention, **sizes
        )

    def scorer(self, **sizes: Any) -> Scorer:
        """The scorer of these sizes (arguments of `Scorer`), shared likewise."""
        return _scorer(self.cfg, self.mesh, self.dtype, **sizes)


def load_language_model(cfg: ModelConfig, mesh: Mesh, turns: Turns | None = None) -> LanguageModel:
    """A model folder on the mesh. The weights are read when they are first wanted, placed for decoding.

    Raises:
        ModelError, ChatError, ShardingError: what is wrong with the folder, the tokenizer or the mesh.
    """
    folder, model, tokenizer = read_description(cfg)
    dtype, int8 = "float32" if cfg.dtype == "float32" else "bfloat16", cfg.dtype == "int8"
    shapes = decoder.abstract_params(model)
    if int8:
        shapes = jax.eval_shape(linear.quantize_layers, shapes)
    axes = linear.axes_of(shapes, decoder.logical_axes(model))
    shardings = rules.param_shardings(mesh, axes, shapes, rules.DECODING)

    def load() -> Params:
        return hf.load_params(cfg.place, model, jnp.dtype(dtype), shardings, int8)

    attention = resolved_attention(cfg.attention, mesh)
    weights = Resident(load, turns)
    return LanguageModel(model, weights, tokenizer, mesh, dtype, attention, str(folder), cfg.place, int8=int8)


def read_description(cfg: ModelConfig) -> tuple[Path, DecoderConfig, ChatTokenizer]:
    """What a model says of itself without its weights: the local folder of its small files, the decoder's sizes, and
    the tokenizer in the configured chat format.

    Raises:
        ModelError, ChatError: what is wrong with the folder; a chat format that is not set or does not fit the model.
    """
    folder = model_folder(cfg.place)
    model = DecoderConfig.from_pretrained(folder)
    tokenizer = read_tokenizer(folder)
    try:
        check_format(cfg.format, model.architecture, tokenizer)
        return folder, model, ChatTokenizer(tokenizer, cfg.format)
    except ChatError as error:
        raise ChatError(
            f"{cfg.path}: {error}; the setting is `format`, beside this model's path (policy.format for the policy)"
        ) from None


def resolved_attention(name: str, mesh: Mesh) -> decoder.Attention:
    """The attention that a configuration's name stands for on these devices. Raises ModelError: they have no such."""
    platform = mesh.devices.flat[0].platform
    if name == "auto":
        return "splash" if platform == "tpu" else "xla"
    if name == "splash" and platform != "tpu":
        raise ModelError(
            f"model.attention: splash is for TPUs, the devices here are of kind {platform}; use auto or xla"
        )
    return cast(decoder.Attention, name)


@contextlib.contextmanager
def _quiet_stderr() -> Iterator[None]:
    """Keep what C++ code writes to standard error to itself, unless an exception comes out."""
    sys.stderr.flush()
    real = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        except BaseException:
            held.seek(0)
            os.write(real, held.read())
            raise
        finally:
            os.dup2(real, 2)
            os.close(real)


@functools.cache
def _engine(
    cfg: DecoderConfig,
    mesh: Mesh,
    eos_ids: tuple[int, ...],
    pad_id: int,
    dtype: str,
    attention: decoder.Attention,
    **sizes: Any,
) -> DecoderEngine:
    with _quiet_stderr():  # JetStream takes seconds to import, and TensorFlow, which it imports, greets with log lines
        from looptool_jax.inference.engine import DecoderEngine

    return DecoderEngine(cfg, mesh=mesh, eos_ids=eos_ids, pad_id=pad_id, dtype=dtype, attention=attention, **sizes)


@functools.cache
def _scorer(cfg: DecoderConfig, mesh: Mesh, dtype: str, **sizes: Any) -> Scorer:
    return Scorer(cfg, mesh, dtype=dtype, **sizes)
