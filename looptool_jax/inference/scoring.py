"""What a model thinks of given tokens, without decoding: one pass over rows of sequences that begin alike."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from looptool_jax.inference.decode_state import Prefix
from looptool_jax.inference.prefix_rows import PrefixRow, prefix_rows
from looptool_jax.inference.sampling import best_and_lead
from looptool_jax.models import decoder
from looptool_jax.models.attention import KV
from looptool_jax.models.config import DecoderConfig, ModelError
from looptool_jax.models.decoder import Params
from looptool_jax.parallel import rules
from looptool_jax.parallel.compilation import bucket

CHUNK = 256  # places of a row whose logits exist at once
SMALLEST_ROW = 64


class Scores(NamedTuple):
    """Of the tokens of a sequence from a given one on: each predicted from all tokens before it."""

    best: Int[np.ndarray, " scored"]
    """what greedy decoding would take"""
    lead: Float[np.ndarray, " scored"]
    """by how much the logit of `best` is above the next one"""
    logprobs: Float[np.ndarray, " scored"]
    """of the given tokens, natural logarithm"""


class Computed(NamedTuple):
    """What a pass over rows leaves on the devices, for decoding that goes on from any of their places."""

    kv: KV
    """[layers, rows, kv_heads, T, head_dim]"""
    hidden: Float[Array, "rows T embed"]


class Scorer:
    """Scores families of up to `members` sequences of at most `longest` tokens. A row has room for at least two
    sequences; one that is not full is padded to the next power of two, or the next eighth if it is more than half full.

    On TPUs too the attention is XLA's, as the splash kernel computes no trees as deep as those of dialogues.
    """

    def __init__(
        self,
        cfg: DecoderConfig,
        mesh: Mesh,
        *,
        longest: int,
        members: int = 1,
        dtype: Any,
    ) -> None:
        if longest > cfg.max_position_embeddings:
            raise ModelError(f"{longest} tokens are more than the {cfg.max_position_embeddings} positions of the model")
        self.cfg, self.mesh, self.dtype = cfg, mesh, jnp.dtype(dtype)
        self.longest, self.time = longest, max(2, members) * longest
        self.rows = rules.batch_shards(mesh)
        rows: Any = rules.batch_sharding(mesh, 1)
        replicated = rules.replicated(mesh)
        placed = (None, rows, rows, rows, rows, rows, None)
        kv: Any = rules.kv_sharding(mesh, 5)
        self.computed_shardings: Any = Computed(KV(kv, kv), rows)
        self._pass = jax.jit(
            self._pass_fn, in_shardings=placed, out_shardings=(self.computed_shardings, (replicated,) * 3)
        )
        self._scores = jax.jit(
            lambda *inputs: self._pass_fn(*inputs)[1], in_shardings=placed, out_shardings=(replicated,) * 3
        )
        prefix = rules.prefix_sharding(mesh)
        self._branch = jax.jit(self._branch_fn, out_shardings=((prefix, prefix), replicated, replicated))

    def rows_of(self, families: Sequence[Sequence[Sequence[int]]]) -> list[list[PrefixRow]]:
        """The sequences in rows, as many at a time as the mesh has batch shards."""
        rows = prefix_rows(families, self.time)
        return [rows[start : start + self.rows] for start in range(0, len(rows), self.rows)]

    def __call__(
        self,
        params: Params,
        rows: Sequence[PrefixRow],
        families: Sequence[Sequence[Sequence[int]]],
        starts: Sequence[int],
    ) -> tuple[dict[tuple[int, int], Scores], Computed]:
        """Scores of the sequences in these rows, by (family, member), from token `starts[family]` (at least 1) on, and
        what `branch` needs."""
        inputs, where = self._inputs(rows, families, starts)
        with jax.set_mesh(self.mesh):
            computed, scores = self._pass(params, *inputs)
        return _by_sequence(scores, where), computed

    def scores(
        self,
        params: Params,
        rows: Sequence[PrefixRow],
        families: Sequence[Sequence[Sequence[int]]],
        starts: Sequence[int],
    ) -> dict[tuple[int, int], Scores]:
        """The scores alone; nothing is kept to go on from."""
        inputs, where = self._inputs(rows, families, starts)
        with jax.set_mesh(self.mesh):
            return _by_sequence(self._scores(params, *inputs), where)

    def _inputs(
        self, rows: Sequence[PrefixRow], families: Sequence[Sequence[Sequence[int]]], starts: Sequence[int]
    ) -> tuple[tuple, dict[tuple[int, int], tuple[int, slice]]]:
        """Arguments of the pass behind the parameters, and where each sequence's scores will stand."""
        longest, eighth = max(len(row.tokens) for row in rows), -(-self.time // 8)
        time = min(self.time, -(-longest // eighth) * eighth)
        if longest <= self.time // 2:
            time = bucket(longest, SMALLEST_ROW, self.time // 2)
        # Sequences that are equal or end alike add places to score, but no tokens.
        scored_most = max(sum(len(path) - starts[f] for (f, _), path in row.paths.items()) for row in rows)
        room = time if scored_most <= time else bucket(scored_most, time, 2 * scored_most)
        tokens, positions, ends = (np.zeros((self.rows, time), np.int32) for _ in range(3))
        places, targets = (np.zeros((self.rows, room), np.int32) for _ in range(2))
        count, where = 0, {}
        for i, row in enumerate(rows):
            size, filled = len(row.tokens), 0
            tokens[i, :size], positions[i, :size], ends[i, :size] = row.tokens, row.positions, row.ends
            for (family, member), path in row.paths.items():
                scored = slice(filled, filled + len(path) - starts[family])
                places[i, scored] = path[starts[family] - 1 : -1]
                targets[i, scored] = families[family][member][starts[family] :]
                where[family, member] = (i, scored)
                filled = scored.stop
            count = max(count, filled)
        arrays = jax.device_put((tokens, positions, ends, places, targets), rules.batch_sharding(self.mesh, 1))
        return (*arrays, count), where

    def prompts(self, params: Params, prompts: Sequence[Sequence[int]]) -> Iterator[tuple[int, Prefix]]:
        """Every prompt by its number, to go on from. Neighbours are those that begin alike."""
        families = [[prompt] for prompt in prompts]
        for rows in self.rows_of(families):
            computed = None  # its memory is for the next
            _, computed = self(params, rows, families, [len(prompt) for prompt in prompts])
            for row, each in enumerate(rows):
                for (number, _), path in each.paths.items():
                    yield number, self.branch(params, computed, row, path)

    def branch(self, params: Params, computed: Computed, row: int, path: Int[np.ndarray, " length"]) -> Prefix:
        """The sequence that ends at the last place of `path` in a row, as a prompt to go on from."""
        padded = np.zeros(bucket(len(path), SMALLEST_ROW, self.longest), np.int32)
        padded[: len(path)] = path
        with jax.set_mesh(self.mesh):
            kv, logits, length = self._branch(params, computed, row, padded, len(path))
        return Prefix(KV(*kv), logits, length)

    def _branch_fn(
        self, params: Params, computed: Computed, row: Array, path: Array, length: Array
    ) -> tuple[tuple[Array, Array], Array, Array]:
        kv = jax.tree.map(lambda x: x[:, row, :, path].transpose(1, 2, 0, 3)[:, None], computed.kv)
        last = computed.hidden[row, path[length - 1]]
        return (kv.k, kv.v), decoder.logits(params, self.cfg, last)[None], length[None]

    def lower(self, params: Params, *, keep: bool = True) -> jax.stages.Lowered:
        """The pass over the longest rows, to be compiled without arrays. Parameters come as they are placed.

        keep: with what `branch` needs.
        """
        with jax.set_mesh(self.mesh):
            return (self._pass if keep else self._scores).lower(params, *self._abstract_inputs())

    def abstract_computed(self, params: Params) -> Computed:
        """Shapes, dtypes and shardings of what a pass over the longest rows leaves for `branch`."""
        computed, _ = jax.eval_shape(self._pass_fn, params, *self._abstract_inputs())
        return rules.placed(computed, self.computed_shardings)

    def _abstract_inputs(self) -> tuple[jax.ShapeDtypeStruct, ...]:
        ids = jax.ShapeDtypeStruct((self.rows, self.time), jnp.int32)
        return (*5 * (ids,), jax.ShapeDtypeStruct((), jnp.int32))

    def _pass_fn(
        self,
        params: Params,
        tokens: Int[Array, "rows T"],
        positions: Int[Array, "rows T"],
        ends: Int[Array, "rows T"],
        places: Int[Array, "rows Q"],
        targets: Int[Array, "rows Q"],
        count: Int[Array, ""],
    ) -> tuple[Computed, tuple[Array, Array, Array]]:
        hidden, kv = decoder.forward(params, self.cfg, tokens, positions, ends)
        chunk = min(CHUNK, places.shape[1])

        def score(number: Array, scores: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            cut = partial(jax.lax.dynamic_slice_in_dim, start_index=number * chunk, slice_size=chunk, axis=1)
            logits = decoder.logits(params, self.cfg, jnp.take_along_axis(hidden, cut(places)[..., None], axis=1))
            best, lead, logsumexp = best_and_lead(logits)
            chosen = jnp.take_along_axis(logits, cut(targets)[..., None], axis=-1)[..., 0]
            new = (best, lead, chosen - logsumexp)
            return tuple(
                jax.lax.dynamic_update_slice_in_dim(old, part, number * chunk, axis=1)
                for old, part in zip(scores, new, strict=True)
            )  # type: ignore[return-value]

        zeros = jnp.zeros(places.shape, jnp.float32)
        chunks = (count + chunk - 1) // chunk
        scores = jax.lax.fori_loop(0, chunks, score, (jnp.zeros(places.shape, jnp.int32), zeros, zeros))
        return Computed(decoder.cached(kv, self.dtype), hidden), scores


def _by_sequence(scores: Any, where: dict[tuple[int, int], tuple[int, slice]]) -> dict[tuple[int, int], Scores]:
    best, lead, logprobs = jax.device_get(scores)
    return {key: Scores(best[at], lead[at], logprobs[at]) for key, at in where.items()}
