"""Log-probabilities of given tokens, without an array of vocabulary size for every position."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from looptool_jax.models import decoder
from looptool_jax.models.config import DecoderConfig


def token_logprobs(
    params: decoder.Params,
    cfg: DecoderConfig,
    hidden: Float[Array, "*rows time embed"],
    targets: Int[Array, "*rows time"],
    chunk: int,
    temperature: float = 1.0,
    *,
    needed: Bool[Array, "*rows time"],
) -> Float[Array, "*rows time"]:
    """Log-softmax of `targets` under the model's head at a temperature (> 0), float32, natural logarithm.

    The time axis is cut into pieces of `chunk` positions; each piece computes its logits, keeps one number per
    token and drops the logits, and the backward pass computes them again. The largest array is therefore
    `[*rows, chunk, vocab]`, forward and backward. Rows stay where they are sharded.

    `hidden[..., t, :]` is the state that predicts `targets[..., t]`. A piece of which no row needs anything is not
    computed, and its log-probs are 0.
    """

    def of_piece(hidden: Array, targets: Array) -> Array:
        logits = decoder.logits(params, cfg, hidden) / temperature
        chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
        return chosen - jax.nn.logsumexp(logits, axis=-1)

    @jax.checkpoint
    def piece(inputs: tuple[Array, Array, Array]) -> Array:
        hidden, targets, needed = inputs
        nothing = jnp.zeros(targets.shape, jnp.float32)
        return jax.lax.cond(needed.any(), of_piece, lambda *_: nothing, hidden, targets)

    time = targets.shape[-1]
    chunk, axis = min(chunk, time), targets.ndim - 1
    logprobs = jax.lax.map(piece, tuple(_pieces(x, axis, chunk) for x in (hidden, targets, needed)))
    return jnp.moveaxis(logprobs, 0, axis).reshape(*targets.shape[:-1], -1)[..., :time]


def _pieces(x: Array, axis: int, chunk: int) -> Array:
    """Pads `axis` to a multiple of `chunk` and cuts it: [..., time, ...] -> [pieces, ..., chunk, ...]."""
    pad = [(0, 0)] * x.ndim
    pad[axis] = (0, -x.shape[axis] % chunk)
    x = jnp.pad(x, pad)
    return jnp.moveaxis(x.reshape(*x.shape[:axis], -1, chunk, *x.shape[axis + 1 :]), axis, 0)
