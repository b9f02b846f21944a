"""Attention of a decoding step: the next tokens of every answer, mostly one, against caches of keys and values and
against each other.

A cache is either a prompt shared by the answers of a group or the answers' own keys and values. Neither the prompt
(over the group) nor a key-value head (over its query heads) is repeated. Caches are read block by block, only as far
as some answer reaches, with a running log-sum-exp (FlashAttention, arXiv 2205.14135). A block that an answer does not
see adds exact zeros to its sums, so how far the others reach changes no bit of its result.

Dimension names: n prompts, g answers of a group, t tokens, b = rows of a cache (n, or n x g), r queries of one of them
(g x t, or t), s keys, k key-value heads, q query heads of one key-value head, h head_dim.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

BLOCK_BYTES = 2**22  # keys that a device reads at a time: large beside what a pass of the loop costs
SMALLEST_BLOCK = 128

_MASKED = -1e30


class KV(NamedTuple):
    """Keys (after norm and rotation) and values."""

    k: Float[Array, "... kv_heads head_dim"]
    v: Float[Array, "... kv_heads head_dim"]


class Cache(NamedTuple):
    """Keys and values that a decoding step reads, and how far: each answer sees the first `length` places.

    Time stands behind the heads, as the products of a TPU want it: in another order it would copy the cache."""

    kv: KV
    """shared [layers, prompts, kv_heads, time, head_dim] or [layers, prompts, group, kv_heads, time, head_dim]"""
    length: Int[Array, "#prompts #group"]
    """the same for all answers of a shared prompt"""
    reach: Int[Array, ""]
    """the largest length of an answer whose result is wanted; those that see more get less"""


def attend(
    q: Float[Array, "prompts group time heads head_dim"], own: KV, caches: Sequence[Cache], layer: Int[Array, ""]
) -> Float[Array, "prompts group time heads head_dim"]:
    """Softmax attention (float32, scale head_dim^-0.5) over one layer of all caches and, up to itself, the tokens of
    the step, whose keys and values [prompts, group, time, kv_heads, head_dim] are `own`; result in the dtype of `q`."""
    n, g, t, heads, h = q.shape
    kv_heads = own.k.shape[3]
    q_ngtkqh = (q * h**-0.5).reshape(n, g, t, kv_heads, heads // kv_heads, h)
    s_ngtkqs = jnp.einsum("ngtkqh,ngskh->ngtkqs", q_ngtkqh, own.k, preferred_element_type=jnp.float32)
    s_ngtkqs = jnp.where(jnp.tri(t, dtype=bool)[:, None, None], s_ngtkqs, _MASKED)
    top = s_ngtkqs.max(axis=-1)
    weights = jnp.exp(s_ngtkqs - top[..., None])
    out = jnp.einsum("ngtkqs,ngskh->ngtkqh", weights.astype(own.v.dtype), own.v, preferred_element_type=jnp.float32)
    sums = _Sums(out, weights.sum(axis=-1), top)
    for cache in caches:
        sums = _add(sums, q_ngtkqh, cache, layer)
    return (sums.out / sums.total[..., None]).astype(q.dtype).reshape(q.shape)


class _Sums(NamedTuple):
    """Unnormalised results: out = Σ exp(s - top) v, total = Σ exp(s - top), top = max s, of each query."""

    out: Float[Array, "prompts group time kv_heads per_kv head_dim"]
    total: Float[Array, "prompts group time kv_heads per_kv"]
    top: Float[Array, "prompts group time kv_heads per_kv"]


def _add(sums: _Sums, q_ngtkqh: Array, cache: Cache, layer: Array) -> _Sums:
    """The sums with what the queries see of a cache."""
    n, g, t = q_ngtkqh.shape[:3]
    shared = cache.kv.k.ndim == 5
    rows = n if shared else n * g
    length_b = jnp.broadcast_to(cache.length, (n, 1) if shared else (n, g)).reshape(-1)
    time = cache.kv.k.shape[-2]
    block = _block_size(cache.kv.k)

    def by_head(x: Array) -> Array:
        return x.reshape(rows, -1, *x.shape[3:]).swapaxes(1, 2)

    q_bkrqh = by_head(q_ngtkqh)

    def add(number: Array, sums: _Sums) -> _Sums:
        first = number * block
        start = jnp.minimum(first, time - block)  # the last block may reach back into the one before
        k_bksh, v_bksh = (
            _block(x, layer, start, block).reshape(rows, *x.shape[-3:-2], block, x.shape[-1]) for x in cache.kv
        )
        place_s = start + jnp.arange(block)
        seen_bs = (place_s >= first) & (place_s < length_b[:, None])
        s_bkrqs = jnp.einsum("bkrqh,bksh->bkrqs", q_bkrqh, k_bksh, preferred_element_type=jnp.float32)
        s_bkrqs = jnp.where(seen_bs[:, None, None, None], s_bkrqs, _MASKED)
        top = jnp.maximum(sums.top, s_bkrqs.max(axis=-1))
        weights, scale = jnp.exp(s_bkrqs - top[..., None]), jnp.exp(sums.top - top)
        out = jnp.einsum("bkrqs,bksh->bkrqh", weights.astype(v_bksh.dtype), v_bksh, preferred_element_type=jnp.float32)
        return _Sums(sums.out * scale[..., None] + out, sums.total * scale + weights.sum(axis=-1), top)

    blocks = (cache.reach + block - 1) // block
    sums = jax.lax.fori_loop(0, blocks, add, _Sums(*map(by_head, sums)))
    return _Sums(*(x.swapaxes(1, 2).reshape(n, g, t, *x.shape[1:2], *x.shape[3:]) for x in sums))


def _block_size(cache: Array) -> int:
    """Places of a block, half of the cache at most: a single one XLA would read ahead of the loop, needed or not."""
    time = cache.shape[-2]
    devices = max(1, jax.sharding.get_abstract_mesh().size)
    bytes_of_a_place = cache.size // cache.shape[0] // time * cache.dtype.itemsize / devices
    return min(-(-time // 2), max(SMALLEST_BLOCK, 2 ** int(math.log2(BLOCK_BYTES / bytes_of_a_place))))


def _block(cache: Array, layer: Array, start: Array, size: int) -> Array:
    """`size` places of one layer, from `start` on."""
    zeros = (0,) * (cache.ndim - 3)
    sizes = (1, *cache.shape[1:-2], size, cache.shape[-1])
    return jax.lax.dynamic_slice(cache, (layer, *zeros, start, 0), sizes)[0]
