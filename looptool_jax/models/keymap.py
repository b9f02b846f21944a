"""The key map: which Hugging Face tensor is which part of the stacked parameter tree."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import product
from typing import TypeVar

import jax
import numpy as np

from looptool_jax.models.config import DecoderConfig
from looptool_jax.models.decoder import abstract_params
from looptool_jax.models.linear import input_count

PER_LAYER = {
    "attention_norm": "input_layernorm.weight",
    "q": "self_attn.q_proj.weight",
    "k": "self_attn.k_proj.weight",
    "v": "self_attn.v_proj.weight",
    "o": "self_attn.o_proj.weight",
    "q_bias": "self_attn.q_proj.bias",
    "k_bias": "self_attn.k_proj.bias",
    "v_bias": "self_attn.v_proj.bias",
    "q_norm": "self_attn.q_norm.weight",
    "k_norm": "self_attn.k_norm.weight",
    "mlp_norm": "post_attention_layernorm.weight",
    "router": "mlp.gate.weight",
    "gate": "mlp.gate_proj.weight",
    "up": "mlp.up_proj.weight",
    "down": "mlp.down_proj.weight",
}
_PER_EXPERT = {"gate": "gate_proj.weight", "up": "up_proj.weight", "down": "down_proj.weight"}
_TOP = {"embedding": "model.embed_tokens.weight", "final_norm": "model.norm.weight", "unembedding": "lm_head.weight"}

ArrayT = TypeVar("ArrayT", np.ndarray, jax.Array)


@dataclass(frozen=True)
class Entry:
    """One Hugging Face tensor: where it lives in the parameter tree and its shapes there and here.

    layer: None where the parameter is not stacked. expert: None where it is not stacked by experts.
    """

    key: str
    name: str
    layer: int | None
    shape: tuple[int, ...]
    ours: tuple[int, ...]
    expert: int | None = None

    @property
    def index(self) -> tuple[int, ...]:
        """Its place in the stacked parameter: (), (layer,) or (layer, expert)."""
        return tuple(number for number in (self.layer, self.expert) if number is not None)

    def to_ours(self, array: ArrayT) -> ArrayT:
        """Hugging Face [out, in] -> ours: projections are [in, out], with heads apart from head_dim."""
        return array if self.layer is None else array.T.reshape(self.ours)

    def to_hf(self, array: ArrayT) -> ArrayT:
        return array if self.layer is None else array.reshape(self.shape[::-1]).T


def entries(cfg: DecoderConfig) -> list[Entry]:
    """Every Hugging Face tensor of the model, in the order of the parameter tree."""
    shapes = abstract_params(cfg)
    found = []
    for name, stacked in shapes["layers"].items():
        if cfg.experts is not None and name in _PER_EXPERT:
            ours = stacked.shape[2:]
            for layer, expert in product(range(cfg.num_layers), range(cfg.experts.count)):
                key = f"model.layers.{layer}.mlp.experts.{expert}.{_PER_EXPERT[name]}"
                found.append(Entry(key, name, layer, _hf_shape(name, ours), ours, expert))
            continue
        ours = stacked.shape[1:]
        for layer in range(cfg.num_layers):
            found.append(Entry(f"model.layers.{layer}.{PER_LAYER[name]}", name, layer, _hf_shape(name, ours), ours))
    for name, key in _TOP.items():
        if name in shapes:
            found.append(Entry(key, name, None, shapes[name].shape, shapes[name].shape))
    return found


def _hf_shape(name: str, ours: tuple[int, ...]) -> tuple[int, ...]:
    if name.endswith(("norm", "bias")):
        return (math.prod(ours),)
    inputs = input_count(name)
    return (math.prod(ours[inputs:]), math.prod(ours[:inputs]))
