"""Low-rank adapters of a decoder's layers (LoRA, arXiv 2106.09685): made, attached, merged, kept in PEFT's layout.

A tree of adapters is {name of a layer weight: {"a": [layers, in..., rank], "b": [layers, rank, out...]}}. The term
starts at zero (b = 0) and is scaled by alpha / rank.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.typing import DTypeLike
from jaxtyping import PRNGKeyArray
from safetensors import SafetensorError, deserialize
from safetensors.numpy import save

from looptool_jax.data.files import is_url, join, local_path, parse_json
from looptool_jax.models import decoder, keymap, moe, storage
from looptool_jax.models.config import DecoderConfig, ModelError
from looptool_jax.models.decoder import Params
from looptool_jax.models.linear import MATRICES as TARGETS
from looptool_jax.models.linear import LowRank, input_count, low_rank_axes

Adapters = dict[str, dict[str, Any]]

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"

_DTYPES: dict[Any, Any] = {"F32": np.float32, "F16": np.float16, "BF16": jnp.bfloat16}

_PLAIN: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none", None),
    "init_lora_weights": (True, False, "gaussian", None),  # others change the weights of the base
    **dict.fromkeys(("use_rslora", "use_dora", "use_qalora", "lora_bias", "fan_in_fan_out"), (False, None)),
    **dict.fromkeys(("rank_pattern", "alpha_pattern", "layer_replication", "target_parameters"), ({}, [], None)),
    **dict.fromkeys(("layers_to_transform", "exclude_modules", "modules_to_save"), ([], None)),
}
"""PEFT's settings with the values under which an adapter is a sum alpha / r * B A at the target modules."""


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank terms beside frozen weights.

    rank: of the terms. alpha: a term counts alpha / rank. targets: which weights of a layer have one (kept in the order
    of TARGETS).
    """

    rank: int = 16
    alpha: float = 32.0
    targets: tuple[str, ...] = TARGETS

    def __post_init__(self) -> None:
        if self.rank < 1 or self.alpha <= 0:
            raise ModelError(f"lora: rank={self.rank} and alpha={self.alpha} must be positive")
        if not self.targets or set(self.targets) - set(TARGETS):
            raise ModelError(f"train.lora.targets: some of {', '.join(TARGETS)}, found {list(self.targets)}")
        object.__setattr__(self, "targets", tuple(name for name in TARGETS if name in self.targets))

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


def init_adapters(cfg: DecoderConfig, lora: LoraConfig, key: PRNGKeyArray, dtype: DTypeLike = jnp.float32) -> Adapters:
    """Fresh adapters: `a` uniform as in PEFT (Kaiming, a = sqrt 5), `b` zero; traceable.

    Raises ModelError where the targets are experts, which have no adapters.
    """
    layers = decoder.abstract_params(cfg)["layers"]
    possible = [name for name in TARGETS if cfg.experts is None or name not in moe.MATRICES]
    adapters: Adapters = {}
    for name, name_key in zip(lora.targets, jax.random.split(key, len(lora.targets)), strict=True):
        if name not in possible:
            raise ModelError(f"train.lora.targets: experts have no adapters; {name} is none of {', '.join(possible)}")
        n_layers, *shape = layers[name].shape
        inputs, outputs = shape[: input_count(name)], shape[input_count(name) :]
        bound = math.prod(inputs) ** -0.5
        a = jax.random.uniform(name_key, (n_layers, *inputs, lora.rank), dtype, -bound, bound)
        adapters[name] = {"a": a, "b": jnp.zeros((n_layers, lora.rank, *outputs), dtype)}
    return adapters


def adapter_axes(cfg: DecoderConfig, lora: LoraConfig) -> dict[str, dict[str, tuple[str, ...]]]:
    """The logical axes of `init_adapters`' arrays."""
    axes = decoder.logical_axes(cfg)["layers"]
    split = {name: low_rank_axes(axes[name], 1 + input_count(name)) for name in lora.targets}
    return {name: {"a": a, "b": b} for name, (a, b) in split.items()}


def attach(params: Params, adapters: Adapters, lora: LoraConfig) -> Params:
    """The parameters with low-rank terms beside the weights: nothing is copied, the base may be int8."""
    layers = dict(params["layers"])
    for name, term in adapters.items():
        layers[name] = LowRank(layers[name], term["a"], term["b"], lora.scale)
    return {**params, "layers": layers}


def merge(params: Params, adapters: Adapters, lora: LoraConfig) -> Params:
    """The parameters with the terms added to the (float) weights, in their dtype; the sum is taken in float32."""
    layers = dict(params["layers"])
    for name, term in adapters.items():
        a, b = (x.astype(jnp.float32) for x in (term["a"], term["b"]))
        flat = a.reshape(a.shape[0], -1, lora.rank) @ b.reshape(b.shape[0], lora.rank, -1)
        base = layers[name]
        layers[name] = (base.astype(jnp.float32) + lora.scale * flat.reshape(base.shape)).astype(base.dtype)
    return {**params, "layers": layers}


def save_adapters(adapters: Adapters, lora: LoraConfig, folder: str | Path, base: str) -> None:
    """Write adapters as PEFT does, to a local folder or one in an object store.

    On several hosts every process must call this; the first one writes.

    Args:
        base: the model that they belong to: a hub id, URL, local folder or GGUF file. What is local is written relative
            to a local `folder`, and in full in an object store.

    Raises ModelError where an object store refuses a file.
    """
    tensors = {}
    for name, term in adapters.items():
        a, b = (multihost_utils.process_allgather(term[part], tiled=True) for part in ("a", "b"))
        for layer in range(len(a)):
            key = f"base_model.model.model.layers.{layer}.{_module(name)}"
            tensors[f"{key}.lora_A.weight"] = np.ascontiguousarray(a[layer].reshape(-1, lora.rank).T)
            tensors[f"{key}.lora_B.weight"] = np.ascontiguousarray(b[layer].reshape(lora.rank, -1).T)
    if jax.process_index():
        return
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": _base_for(folder, base),
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": sorted(_module(name).rpartition(".")[2] for name in lora.targets),
        "inference_mode": True,
    }
    for name, content in (
        (WEIGHTS_FILE, save(tensors, {"format": "pt"})),
        (CONFIG_FILE, (json.dumps(config, indent=2) + "\n").encode()),
    ):
        with storage.write_whole(join(folder, name)) as file:
            file.write(content)


def is_adapter(folder: str) -> bool:
    """Whether a folder holds adapters and not a whole model."""
    return (is_url(folder) or local_path(folder).is_dir()) and CONFIG_FILE in storage.list_files(folder)


def adapter_base(folder: str) -> str:
    """The model that the adapters in a folder belong to. Raises ModelError."""
    base = _read_config(folder).get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise ModelError(f"{folder}: {CONFIG_FILE} names no base_model_name_or_path")
    beside = Path(os.path.normpath(local_path(folder) / base))
    if not is_url(folder) and not is_url(base) and beside.exists():
        base = str(beside)
    if is_adapter(base):
        raise ModelError(f"{folder}: its base {base} holds adapters itself; export that one, and name the export there")
    return base


def load_adapters(folder: str, cfg: DecoderConfig) -> tuple[Adapters, LoraConfig]:
    """What `save_adapters` or PEFT wrote, as float32 NumPy arrays.

    Raises ModelError, also for kinds of adapters that are more than a low-rank term at weights of the layers.
    """
    raw = _read_config(folder)
    lora = _read_sizes(folder, raw)
    shapes = jax.eval_shape(lambda: init_adapters(cfg, lora, jax.random.key(0)))
    tensors = _read_tensors(folder)
    adapters: Adapters = {name: {} for name in lora.targets}
    for name, part in ((name, part) for name in lora.targets for part in ("a", "b")):
        shape = shapes[name][part].shape[1:]
        size = math.prod(shape) // lora.rank
        stored = (lora.rank, size) if part == "a" else (size, lora.rank)
        rows = []
        for layer in range(cfg.num_layers):
            key = f"base_model.model.model.layers.{layer}.{_module(name)}.lora_{part.upper()}.weight"
            found = tensors.pop(key, None)
            if found is None or found.shape != stored:
                raise ModelError(f"{folder}: tensor {key} is missing or not of shape {list(shape)}, flattened")
            rows.append(found.astype(np.float32).T.reshape(shape))
        adapters[name][part] = np.stack(rows)
    if tensors:
        raise ModelError(
            f"{folder}: tensor {min(tensors)} is none of a low-rank term at the {CONFIG_FILE}'s target_modules; "
            "merge these adapters into their base with PEFT, and name that model"
        )
    return adapters, lora


def _base_for(folder: str | Path, base: str) -> str:
    """How adapters in `folder` name their base."""
    if is_url(base) or not local_path(base).exists():
        return base
    return (
        os.path.abspath(local_path(base)) if is_url(folder) else os.path.relpath(local_path(base), local_path(folder))
    )


def _read_config(folder: str) -> dict[str, Any]:
    try:
        raw = parse_json(_read(folder, CONFIG_FILE))
    except ModelError:
        raise
    except ValueError as error:
        raise ModelError(f"{folder}: {CONFIG_FILE} cannot be read ({error})") from None
    if not isinstance(raw, dict):
        raise ModelError(f"{folder}: {CONFIG_FILE} is not a JSON object")
    return raw


def _read_tensors(folder: str) -> dict[str, np.ndarray]:
    try:
        found = deserialize(_read(folder, WEIGHTS_FILE))
    except SafetensorError as error:
        raise ModelError(f"{folder}: {WEIGHTS_FILE} cannot be read ({error}); copy it again") from None
    for key, tensor in found:
        if tensor["dtype"] not in _DTYPES:
            raise ModelError(f"{folder}: tensor {key} is {tensor['dtype']}; save the adapters as {', '.join(_DTYPES)}")
    return {key: np.frombuffer(x["data"], _DTYPES[x["dtype"]]).reshape(x["shape"]) for key, x in found}


def _read_sizes(folder: str, raw: dict[str, Any]) -> LoraConfig:
    """Raises ModelError for a PEFT configuration that means anything else than a `LoraConfig`."""
    for key, plain in _PLAIN.items():
        if raw.get(key, plain[0]) not in plain:
            raise ModelError(
                f"{folder}: adapters with {key}={raw[key]!r} are not supported; "
                "merge them into their base with PEFT, and name that model"
            )
    modules, known = raw.get("target_modules"), {_module(name).rpartition(".")[2]: name for name in TARGETS}
    if not isinstance(modules, list) or not modules or not all(module in [*known] for module in modules):
        raise ModelError(
            f"{folder}: target_modules must be a list of some of {', '.join(known)}, found {modules!r}; "
            "merge these adapters into their base with PEFT, and name that model"
        )
    rank, alpha = raw.get("r"), raw.get("lora_alpha")
    if not isinstance(rank, int) or not isinstance(alpha, (int, float)):
        raise ModelError(f"{folder}: {CONFIG_FILE} has no numbers r and lora_alpha, found {rank!r} and {alpha!r}")
    return LoraConfig(rank, float(alpha), tuple(known[module] for module in modules))


def _read(folder: str, name: str) -> bytes:
    sizes = storage.list_files(folder)
    if name not in sizes:
        raise ModelError(f"{folder} has no {name}")
    return storage.read_bytes(join(folder, name), sizes[name])


def _module(name: str) -> str:
    """Hugging Face's name of a layer's weight, as PEFT writes it."""
    return keymap.PER_LAYER[name].removesuffix(".weight")
