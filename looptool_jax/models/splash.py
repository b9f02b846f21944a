"""Attention of whole rows on TPU: the splash kernel, with the mask computed inside it.

Rows are those of `tree_attention` whose trees have one fork at most: independent samples, and prompts with their
answers behind them. The kernel computes its mask from one number of the query and the place of the key, so a query's
number says all it sees: its tree's trunk up to a place, and its own branch from another place on. Three places have to
fit into 32 bits, so trunks end and branches start at multiples of `alignment`. Blocks of keys that no query of a block
sees are skipped, which is read off the data. Nothing of size queries x keys is stored, forward or backward.

Dimension names: n rows, t time, b blocks, k key-value heads, h head_dim.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
from jax.experimental.pallas.ops.tpu.splash_attention.splash_attention_mask_info import MaskInfo
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from looptool_jax.models.tree_attention import ATTENDED
from looptool_jax.parallel.rules import BATCH, batch_shards

BLOCKS = (512, 256, 128)  # of queries and of keys; rows are padded to a multiple of one
PADDING = -1  # the segment of places that hold no token

TRUNK_BITS, START_BITS, OFFSET_BITS = 7, 13, 12
LONGEST_BRANCH = 1 << OFFSET_BITS
LONGEST_ROW = 1 << 17  # the maps of blocks lie in a small memory; the numbers would reach four times as far


class Alignment(NamedTuple):
    """Of a row: a trunk ends, and a branch starts, at a multiple of these."""

    trunk: int = 1
    branch: int = 1


def alignment(time: int) -> Alignment:
    """What the kernel asks of the trees in a row of `time` places. Raises ValueError for a row that is too long."""
    if time > LONGEST_ROW:
        raise ValueError(f"splash attention takes rows of up to {LONGEST_ROW} tokens, not {time}")
    branch = math.ceil(time / (1 << START_BITS))
    return Alignment(branch * math.ceil(time / (branch * ((1 << TRUNK_BITS) - 1))), branch)


def splash_attend(
    q: Float[Array, "rows time heads head_dim"],
    k: Float[Array, "rows time kv_heads head_dim"],
    v: Float[Array, "rows time kv_heads head_dim"],
    ends: Int[Array, "rows time"],
    *,
    interpret: bool = False,
) -> Float[Array, "rows time heads head_dim"]:
    """Softmax attention (float32, scale head_dim^-0.5) of each token over those it sees; result in the dtype of `q`.

    ends: as of `tree_attend`, with trees that fork once at most, laid out by `alignment(time)`; a branch has at most
    LONGEST_BRANCH tokens.
    interpret: run without a TPU, slowly.
    On a mesh (`jax.set_mesh`) heads stay split over tensor, and rows over the batch axes where they divide.
    """
    time = q.shape[1]
    block = next((size for size in BLOCKS if size <= time), BLOCKS[-1])
    sizes = kernels.BlockSizes(
        block_q=block, block_kv=block, block_kv_compute=block,
        block_q_dkv=block, block_kv_dkv=block, block_kv_dkv_compute=block, block_q_dq=block, block_kv_dq=block,
    )  # fmt: skip
    align = alignment(time)

    def row(inputs: tuple[Array, Array, Array, Array]) -> Array:
        q, k, v, ends = inputs
        segments, codes = _encode(ends, align)
        computed, keys, queries = _blocks(ends, block)
        given: Any = {"block_mask": computed, "mask_next": None, "partial_mask_blocks": None, "q_sequence": codes}
        over_keys, over_queries = MaskInfo(data_next=keys, **given), MaskInfo(data_next=queries, **given)
        kernel = kernels.SplashAttentionKernel(
            over_keys, over_keys, over_queries, block_sizes=sizes, is_mqa=False, save_residuals=False,
            mask_value=kernels.DEFAULT_MASK_VALUE, attn_logits_soft_cap=None, residual_checkpoint_name=ATTENDED,
            mask_function=_sees(align), interpret=interpret,
        )  # fmt: skip
        return kernel(q, k, v, kernels.SegmentIds(segments, segments))  # type: ignore[return-value]

    def local(*inputs: Array) -> Array:
        return jax.lax.map(row, inputs)

    def heads_first(x: Array) -> Array:
        return jnp.pad(x.swapaxes(1, 2), ((0, 0), (0, 0), (0, -time % block), (0, 0)))

    ends = jnp.pad(ends, ((0, 0), (0, -time % block)))
    inputs = (heads_first(q * q.shape[-1] ** -0.5), heads_first(k), heads_first(v), ends)
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.axis_names:
        rows = BATCH if len(q) % batch_shards(mesh) == 0 else None
        heads = PartitionSpec(rows, "tensor")
        specs = (heads, heads, heads, PartitionSpec(rows))
        local = jax.shard_map(local, in_specs=specs, out_specs=heads, check_vma=False)
    return local(*inputs)[:, :, :time].swapaxes(1, 2).astype(q.dtype)


@functools.cache
def _sees(align: Alignment) -> Callable[[Any, Any], Any]:
    """Whether the query of a number sees the key at a place, of the same tree. One function for each alignment: the
    kernel is compiled anew for another one."""

    def sees(code: Any, key: Any) -> Any:
        trunk_end = (code >> START_BITS + OFFSET_BITS & (1 << TRUNK_BITS) - 1) * align.trunk
        start = (code >> OFFSET_BITS & (1 << START_BITS) - 1) * align.branch
        last = start + (code & (1 << OFFSET_BITS) - 1)
        return (key <= last) & ((key >= start) | (key < trunk_end))

    return sees


def _encode(ends: Int[Array, " time"], align: Alignment) -> tuple[Int[Array, " time"], Int[Array, " time"]]:
    """Of each token the number of its tree and what it sees of it; see `_sees`."""
    place = jnp.arange(len(ends))
    there = ends > 0
    reach = jax.lax.cummax(ends)  # the end of the present tree: its first token is seen to its end
    root = there & (place >= _before(reach))
    forked = _latest(there & (ends < reach)) > _latest(root)
    branch = there & forked
    first = branch & ((ends != _before(ends)) | ~_before(branch))
    stem = _latest(first & ~_before(forked))
    trunk_end = jnp.where(branch, stem, place) // align.trunk
    start = jnp.where(branch, _latest(first), trunk_end * align.trunk)
    codes = (trunk_end << START_BITS | start // align.branch) << OFFSET_BITS | (place - start)
    return jnp.where(there, jnp.cumsum(root), PADDING), jnp.where(there, codes, 0)


def _before(x: Array) -> Array:
    """The value at the place before; zero or False at the first."""
    return jnp.pad(x[:-1], (1, 0))


def _latest(marked: Bool[Array, " time"]) -> Int[Array, " time"]:
    """The last marked place up to each place; -1 where there is none."""
    return jax.lax.cummax(jnp.where(marked, jnp.arange(len(marked)), -1))


def _blocks(ends: Int[Array, " time"], block: int) -> tuple[Array, Array, Array]:
    """Which pairs of blocks (queries, keys) are computed, and at each pair the block that is fetched: of keys where the
    loop is over keys, of queries where it is over queries. Each is [1, blocks, blocks]: one map for all heads.

    At a pair that is not computed it is the block of the next one that is, so that nothing is fetched for it. A block
    always sees itself, so that the sums over keys of padding are not empty."""
    number = jnp.arange(len(ends) // block)
    query, key = number[:, None], number
    seen = (key == query) | ((key < query) & (ends.reshape(-1, block).max(axis=1) > query * block))
    keys = jnp.where(seen, key, len(number)).astype(jnp.int32)
    keys = jnp.minimum(jax.lax.cummin(keys, axis=1, reverse=True), query)
    queries = jnp.where(seen, query, -1).astype(jnp.int32)
    queries = jnp.maximum(jax.lax.cummax(queries, axis=0), key)
    return seen[None].astype(jnp.int32), keys[None], queries[None]
