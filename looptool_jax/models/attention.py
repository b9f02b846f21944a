"""The one attention primitive: queries against blocks of keys and values, merged by log-sum-exp.

A block is either a prompt shared by the answers of a group or the answers' own keys and values. Nothing is
concatenated, and neither the prompt (over the group) nor a key-value head (over its query heads) is repeated.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

_MASKED = -1e30


class Block(NamedTuple):
    """Keys and values with the mask of what may be seen.

    Shared: k, v [prompts, keys, kv_heads, head_dim] and a mask that broadcasts to [prompts, queries, keys],
    where the queries of all answers of a group are one axis.
    Own: k, v [prompts, group, keys, kv_heads, head_dim] and a mask that broadcasts to [prompts, group, queries, keys].
    """

    k: Float[Array, "... keys kv_heads head_dim"]
    v: Float[Array, "... keys kv_heads head_dim"]
    mask: Bool[Array, "... queries keys"]


def attend(
    q: Float[Array, "prompts group queries heads head_dim"], blocks: Sequence[Block]
) -> Float[Array, "prompts group queries heads head_dim"]:
    """Softmax attention (float32, scale head_dim^-0.5) over the union of all blocks; result in the dtype of `q`.

    Every query must see at least one key in some block.
    """
    n, g, t, heads, h = q.shape
    kv_heads = blocks[0].k.shape[-2]
    q = (q * h**-0.5).reshape(n, g, t, kv_heads, heads // kv_heads, h)
    parts = [_attend_block(q, block) for block in blocks]
    if len(parts) == 1:
        out, total = parts[0].out, parts[0].total
    else:
        top = jnp.max(jnp.stack([part.top for part in parts]), axis=0)
        scales = [jnp.exp(part.top - top) for part in parts]
        out = sum(part.out * scale[..., None] for part, scale in zip(parts, scales, strict=True))
        total = sum(part.total * scale for part, scale in zip(parts, scales, strict=True))
    return (out / total[..., None]).astype(q.dtype).reshape(n, g, t, heads, h)


class _Part(NamedTuple):
    """A block's unnormalised result: out = Σ exp(s - top) v, total = Σ exp(s - top), top = max s (a constant)."""

    out: Float[Array, "prompts group queries kv_heads per_kv head_dim"]
    total: Float[Array, "prompts group queries kv_heads per_kv"]
    top: Float[Array, "prompts group queries kv_heads per_kv"]


def _attend_block(q: Array, block: Block) -> _Part:
    n, g, t, kv_heads, per_kv, h = q.shape
    k, v, mask = block
    if k.ndim == 4:
        rows = (n, g * t)
    else:
        rows = (n * g, t)
        k, v = k.reshape(n * g, *k.shape[2:]), v.reshape(n * g, *v.shape[2:])
        mask = jnp.broadcast_to(mask, (n, g, *mask.shape[-2:])).reshape(n * g, *mask.shape[-2:])
    q_btkqh = q.reshape(*rows, kv_heads, per_kv, h)
    s_bktqs = jnp.einsum("btkqh,bskh->bktqs", q_btkqh, k, preferred_element_type=jnp.float32)
    s_bktqs = jnp.where(mask[:, None, :, None, :], s_bktqs, _MASKED)
    top_bktq = jax.lax.stop_gradient(jnp.max(s_bktqs, axis=-1))
    p_bktqs = jnp.exp(s_bktqs - top_bktq[..., None])
    out_bktqh = jnp.einsum("bktqs,bskh->bktqh", p_bktqs.astype(v.dtype), v, preferred_element_type=jnp.float32)
    lead = (n, g, t, kv_heads, per_kv)
    return _Part(
        out_bktqh.swapaxes(1, 2).reshape(*lead, h),
        jnp.sum(p_bktqs, axis=-1).swapaxes(1, 2).reshape(lead),
        top_bktq.swapaxes(1, 2).reshape(lead),
    )
