"""Attention of a decoding step: queries against caches of keys and values, merged by log-sum-exp.

A block is either a prompt shared by the answers of a group or the answers' own keys and values. Nothing is
concatenated, and neither the prompt (over the group) nor a key-value head (over its query heads) is repeated.

Dimension names: n prompts, g answers of a group, b = rows of a block (n, or n x g), t queries, s keys, k key-value
heads, q query heads of one key-value head, h head_dim.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

_MASKED = -1e30


class Block(NamedTuple):
    """Keys and values, shared [prompts, keys, kv_heads, head_dim] or of each answer [prompts, group, keys, ...].

    The mask of what may be seen broadcasts to [prompts, group, queries, keys].
    """

    k: Float[Array, "... keys kv_heads head_dim"]
    v: Float[Array, "... keys kv_heads head_dim"]
    mask: Bool[Array, "#prompts #group #queries keys"]


def attend(
    q: Float[Array, "prompts group queries heads head_dim"], blocks: Sequence[Block]
) -> Float[Array, "prompts group queries heads head_dim"]:
    """Softmax attention (float32, scale head_dim^-0.5) over the union of all blocks; result in the dtype of `q`.

    Every query must see at least one key in some block.
    """
    q_ngtkqh = _grouped(q, blocks)
    part = functools.reduce(_merge, [_attend_block(q_ngtkqh, block) for block in blocks])
    return (part.out / part.total[..., None]).astype(q.dtype).reshape(q.shape)


class _Part(NamedTuple):
    """A block's unnormalised result: out = Σ exp(s - top) v, total = Σ exp(s - top), top = max s, of each query."""

    out: Float[Array, "prompts group queries kv_heads per_kv head_dim"]
    total: Float[Array, "prompts group queries kv_heads per_kv"]
    top: Float[Array, "prompts group queries kv_heads per_kv"]


def _attend_block(q_ngtkqh: Array, block: Block) -> _Part:
    k, v, mask = _rows(block, q_ngtkqh.shape[1])
    s_bktqs = _scores(_fold(q_ngtkqh, block), k, mask)
    top_bktq = jnp.max(s_bktqs, axis=-1)
    p_bktqs = jnp.exp(s_bktqs - top_bktq[..., None])
    out_bktqh = jnp.einsum("bktqs,bskh->bktqh", p_bktqs.astype(v.dtype), v, preferred_element_type=jnp.float32)
    lead = q_ngtkqh.shape[:-1]
    return _Part(
        out_bktqh.swapaxes(1, 2).reshape(q_ngtkqh.shape),
        jnp.sum(p_bktqs, axis=-1).swapaxes(1, 2).reshape(lead),
        top_bktq.swapaxes(1, 2).reshape(lead),
    )


def _merge(a: _Part, b: _Part) -> _Part:
    top = jnp.maximum(a.top, b.top)
    scale_a, scale_b = jnp.exp(a.top - top), jnp.exp(b.top - top)
    out = a.out * scale_a[..., None] + b.out * scale_b[..., None]
    return _Part(out, a.total * scale_a + b.total * scale_b, top)


def _scores(q_btkqh: Array, k_bskh: Array, mask_bts: Array) -> Array:
    # Tied to the queries of this layer: what depends on the mask alone, expanded to all heads, would be computed ahead
    # of a scan over layers and kept.
    q_btkqh, mask_bts, masked = jax.lax.optimization_barrier((q_btkqh, mask_bts, jnp.float32(_MASKED)))
    s_bktqs = jnp.einsum("btkqh,bskh->bktqs", q_btkqh, k_bskh, preferred_element_type=jnp.float32)
    return jnp.where(mask_bts[:, None, :, None, :], s_bktqs, masked)


def _grouped(q: Array, blocks: Sequence[Block]) -> Array:
    """Scaled queries with the query heads of one key-value head as an axis."""
    n, g, t, heads, h = q.shape
    kv_heads = blocks[0].k.shape[-2]
    return (q * h**-0.5).reshape(n, g, t, kv_heads, heads // kv_heads, h)


def _fold(x: Array, block: Block) -> Array:
    """[n, g, t, ...] as [b, t, ...]: all answers of a prompt are queries of its shared block, or each has its own."""
    n, g, t, *rest = x.shape
    return x.reshape(n, g * t, *rest) if block.k.ndim == 4 else x.reshape(n * g, t, *rest)


def _rows(block: Block, group: int) -> Block:
    """The block with k, v [b, s, k, h] and a mask that broadcasts to [b, t, s]."""
    k, v, mask = block
    if k.ndim == 5:
        k, v = k.reshape(-1, *k.shape[2:]), v.reshape(-1, *v.shape[2:])
        mask = jnp.broadcast_to(mask, (block.k.shape[0], group, *mask.shape[2:]))
        return Block(k, v, mask.reshape(-1, *mask.shape[2:]))
    if mask.shape[1:3] != (1, 1):
        mask = jnp.broadcast_to(mask, (mask.shape[0], group, *mask.shape[2:]))
    return Block(k, v, mask.reshape(mask.shape[0], -1, mask.shape[3]))
