"""The one attention primitive: queries against blocks of keys and values, merged by log-sum-exp.

A block is either a prompt shared by the answers of a group or the answers' own keys and values. Nothing is
concatenated, and neither the prompt (over the group) nor a key-value head (over its query heads) is repeated.

The backward pass is written out: it keeps the result and the log-sum-exp of each query instead of the weights of every
query and key, which it computes again (as in FlashAttention, arXiv 2205.14135, appendix B).

Dimension names: n prompts, g answers of a group, b = rows of a block (n, or n x g), t queries, s keys, k key-value
heads, q query heads of one key-value head, h head_dim.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

QUERIES_AT_ONCE = 1024

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

    Every query must see at least one key in some block. Where a prompt has more than `QUERIES_AT_ONCE` queries (its
    group counted in), about that many are computed at a time, so that memory does not grow with queries x keys. The
    number of queries is cut into multiples of 64; one that is no multiple of 64 stays whole.
    """
    blocks = list(blocks)
    n, g, t, heads, h = q.shape
    size = math.gcd(t, 64 * max(1, QUERIES_AT_ONCE // (64 * g)))
    if g * t <= QUERIES_AT_ONCE or size < 64 or size == t:
        return _attend(q, blocks)

    def chunk(inputs: tuple[Array, Array]) -> Array:
        number, q_chunk = inputs

        def mine(mask: Array) -> Array:
            return mask if mask.shape[2] == 1 else jax.lax.dynamic_slice_in_dim(mask, number * size, size, axis=2)

        return _attend(q_chunk, [block._replace(mask=mine(block.mask)) for block in blocks])

    q_chunks = jnp.moveaxis(q.reshape(n, g, t // size, size, heads, h), 2, 0)
    out_chunks = jax.lax.map(chunk, (jnp.arange(t // size), q_chunks))
    return jnp.moveaxis(out_chunks, 0, 2).reshape(q.shape)


@jax.custom_vjp
def _attend(q: Array, blocks: list[Block]) -> Array:
    return _forward(q, blocks)[0]


def _forward(q: Array, blocks: list[Block]) -> tuple[Array, tuple]:
    q_ngtkqh = _grouped(q, blocks)
    part = functools.reduce(_merge, [_attend_block(q_ngtkqh, block) for block in blocks])
    out = (part.out / part.total[..., None]).astype(q.dtype).reshape(q.shape)
    return out, (q, blocks, out, jnp.log(part.total) + part.top)


def _backward(saved: tuple, d_out: Array) -> tuple[Array, list[Block]]:
    q, blocks, out, lse = saved
    q_ngtkqh, g_ngtkqh = _grouped(q, blocks), d_out.reshape(*lse.shape, -1)
    delta = jnp.sum((d_out.astype(jnp.float32) * out.astype(jnp.float32)).reshape(g_ngtkqh.shape), axis=-1)
    d_q, d_blocks = jnp.zeros(q_ngtkqh.shape, jnp.float32), []
    for block in blocks:
        k, v, mask = _rows(block, q_ngtkqh.shape[1])
        q_btkqh, g_btkqh, lse_btkq, delta_btkq = (_fold(x, block) for x in (q_ngtkqh, g_ngtkqh, lse, delta))
        p_bktqs = jnp.exp(_scores(q_btkqh, k, mask) - lse_btkq.swapaxes(1, 2)[..., None])
        d_p = jnp.einsum("btkqh,bskh->bktqs", g_btkqh, v, preferred_element_type=jnp.float32)
        d_s = (p_bktqs * (d_p - delta_btkq.swapaxes(1, 2)[..., None])).astype(q.dtype)
        d_v = jnp.einsum("btkqh,bktqs->bkhs", g_btkqh, p_bktqs.astype(q.dtype)).transpose(0, 3, 1, 2)
        d_k = jnp.einsum("btkqh,bktqs->bkhs", q_btkqh, d_s).transpose(0, 3, 1, 2)
        d_q_bktqh = jnp.einsum("bktqs,bskh->bktqh", d_s, k, preferred_element_type=jnp.float32)
        d_q += d_q_bktqh.swapaxes(1, 2).reshape(d_q.shape)
        d_blocks.append(Block(d_k.reshape(block.k.shape), d_v.reshape(block.v.shape), None))  # type: ignore[arg-type]
    return (d_q * q.shape[-1] ** -0.5).astype(q.dtype).reshape(q.shape), d_blocks


_attend.defvjp(_forward, _backward)


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


def _grouped(q: Array, blocks: list[Block]) -> Array:
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
