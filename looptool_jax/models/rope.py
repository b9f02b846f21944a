"""Rotary position embeddings in the half-split layout of Hugging Face models, with Llama-3 frequency scaling."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from looptool_jax.models.config import DecoderConfig


class Rotation(NamedTuple):
    """Cosines and sines of every position, float32, with an axis of one for the heads."""

    cos: Float[Array, "... time 1 half_dim"]
    sin: Float[Array, "... time 1 half_dim"]


def inverse_frequencies(cfg: DecoderConfig) -> np.ndarray:
    """Radians per position of each of the head_dim/2 pairs, float32 [head_dim / 2]."""
    frequencies = cfg.rope_theta ** -(np.arange(0, cfg.head_dim, 2, dtype=np.float64) / cfg.head_dim)
    scaling = cfg.rope_scaling
    if scaling is not None:
        # Llama 3.1: long wavelengths are stretched by `factor`, short ones kept, those between interpolated.
        turns = scaling.original_max_position_embeddings * frequencies / (2 * math.pi)
        ramp = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
        keep = np.clip(ramp, 0.0, 1.0)
        frequencies = frequencies * (keep + (1.0 - keep) / scaling.factor)
    return frequencies.astype(np.float32)


def rotation(cfg: DecoderConfig, positions: Int[Array, "... time"]) -> Rotation:
    """The rotation of each position, computed once and used by every layer."""
    angles = positions[..., None, None].astype(jnp.float32) * inverse_frequencies(cfg)
    return Rotation(jnp.cos(angles), jnp.sin(angles))


def rotate(x: Float[Array, "... time heads head_dim"], angles: Rotation) -> Float[Array, "... time heads head_dim"]:
    """Rotates pairs (i, i + head_dim/2) in float32; result in the dtype of `x`."""
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    out = jnp.concatenate([a * angles.cos - b * angles.sin, b * angles.cos + a * angles.sin], axis=-1)
    return out.astype(x.dtype)
