"""Supervised fine-tuning on packed rows: the warm-up of the embedded model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from looptool_jax.limits import at_least
from looptool_jax.models import decoder
from looptool_jax.models.config import DecoderConfig
from looptool_jax.models.linear import cast
from looptool_jax.parallel.rules import batch_sharding, replicated
from looptool_jax.training.accumulate import AnyArray, BatchStep, accumulated_gradients
from looptool_jax.training.logprobs import token_logprobs
from looptool_jax.training.optimizer import TrainState, apply_gradients


@dataclass(frozen=True)
class SftConfig:
    micro_batches: int = 1
    logprob_chunk: int = 256  # time positions whose logits exist at once
    remat: decoder.Remat = "none"
    compute_dtype: Literal["float32", "bfloat16"] = "bfloat16"  # of the model's passes; parameters keep their own

    def __post_init__(self) -> None:
        if self.compute_dtype not in ("float32", "bfloat16"):
            raise ValueError(f"sft.compute_dtype is {self.compute_dtype!r}: use 'float32' or 'bfloat16'")
        if self.remat not in get_args(decoder.Remat):
            raise ValueError(f"sft.remat is {self.remat!r}: use 'none', 'attention' or 'full'")
        at_least("sft.micro_batches", self.micro_batches, 1)
        at_least("sft.logprob_chunk", self.logprob_chunk, 1)


class SftBatch(NamedTuple):
    """Packed rows. Several examples share a row; an example never crosses one."""

    tokens: Int[AnyArray, "rows length"]
    positions: Int[AnyArray, "rows length"]  # from 0 within each example
    ends: Int[AnyArray, "rows length"]  # one behind the last place of the example; 0 is padding
    weights: Float[AnyArray, "rows length"]  # of the token in the loss; 0 for an example's first token


class Packed(NamedTuple):
    batch: SftBatch  # NumPy arrays
    dropped: int  # examples longer than a row


def pack(
    examples: Sequence[tuple[Sequence[int], int]], length: int, *, prompt_weight: float = 0.0, rows_multiple: int = 1
) -> Packed:
    """Packs (token ids, prompt length) examples into rows of `length`, first fit in the given order.

    Deterministic. An example longer than a row is dropped and counted, never cut. The number of rows is rounded
    up to `rows_multiple` by empty rows. The first token of an example has nothing to be predicted from: weight 0.
    """
    kept = [(ids, prompt_len) for ids, prompt_len in examples if len(ids) <= length]
    free = np.full(max(len(kept), 1), length)
    placed = []
    for ids, _ in kept:
        row = int(np.argmax(free >= len(ids)))
        placed.append((row, length - int(free[row])))
        free[row] -= len(ids)
    rows = 1 + max((row for row, _ in placed), default=0)
    rows = -(-rows // rows_multiple) * rows_multiple

    shape = (rows, length)
    tokens, positions, ends = (np.zeros(shape, np.int32) for _ in range(3))
    weights = np.zeros(shape, np.float32)
    for (ids, prompt_len), (row, start) in zip(kept, placed, strict=True):
        span = slice(start, start + len(ids))
        tokens[row, span] = ids
        positions[row, span] = np.arange(len(ids))
        ends[row, span] = span.stop
        weights[row, span] = np.where(np.arange(len(ids)) < prompt_len, prompt_weight, 1.0)
        weights[row, start] = 0.0
    return Packed(SftBatch(tokens, positions, ends, weights), len(examples) - len(kept))


def epoch_batches(batch: SftBatch, rows: int, seed: int, epoch: int, start: int = 0) -> Iterator[SftBatch]:
    """Batches of `rows` packed rows in an order drawn from (seed, epoch), from batch number `start` on.

    The rows left over at the end of an epoch are not used in it.
    """
    order = np.random.default_rng([seed, epoch]).permutation(len(batch.tokens))
    for i in range(start, len(order) // rows):
        chosen = order[i * rows : (i + 1) * rows]
        yield SftBatch(*(x[chosen] for x in batch))


def make_sft_step(
    cfg: DecoderConfig,
    sft: SftConfig,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    shardings: TrainState,
) -> BatchStep:
    """The compiled update `step(state, batch) -> (state, metrics)`; `state` is donated.

    Loss: weighted mean of -log p over the weighted tokens of the whole batch, whatever the micro-batches.
    Metrics (float32 scalars): loss, grad_norm before clipping, tokens (those with a weight).
    Raises ShardingError where the rows do not divide into micro-batches over the mesh.
    """
    rows = batch_sharding(mesh, 1)

    @partial(jax.jit, in_shardings=(shardings, rows), out_shardings=(shardings, replicated(mesh)), donate_argnums=0)
    def step(state, batch):
        total = jnp.maximum(_target_weights(batch).sum(), 1e-8)

        def loss(params, part):
            value = sft_loss(params, cfg, sft, part) / total
            return value, {"tokens": (_target_weights(part) > 0).sum(dtype=jnp.float32)}

        grads, value, metrics = accumulated_gradients(loss, state.params, batch, sft.micro_batches, shardings.params)
        state, norm = apply_gradients(optimizer, state, grads)
        return state, {"loss": value, "grad_norm": norm, **metrics}

    return BatchStep(step, mesh, "rows", sft.micro_batches)


def sft_loss(params: decoder.Params, cfg: DecoderConfig, sft: SftConfig, batch: SftBatch) -> Float[Array, ""]:
    """Sum over tokens of weight x -log p(token | what stands before it in its example), float32."""
    params = cast(params, sft.compute_dtype)
    hidden, _ = decoder.forward(params, cfg, batch.tokens, batch.positions, batch.ends, remat=sft.remat)
    targets = jnp.roll(batch.tokens, -1, axis=1)
    weights = _target_weights(batch)
    logprobs = token_logprobs(params, cfg, hidden, targets, sft.logprob_chunk, needed=weights > 0)
    return -(logprobs * weights).sum()


def _target_weights(batch: SftBatch) -> Float[Array, "rows length"]:
    """Weight of the token that each position predicts: the next one, if it belongs to the same example."""
    same = (batch.ends[:, 1:] == batch.ends[:, :-1]) & (batch.ends[:, 1:] > 0)
    return jnp.pad(jnp.where(same, batch.weights[:, 1:], 0.0), ((0, 0), (0, 1)))
