"""Attention of whole rows whose tokens form trees: packed samples, prompts with their answers, dialogues that share
their beginning.

Where the last token that may see token j stands is one number, `ends[j]`: token i sees j where `j <= i < ends[j]`. For
plain causal attention that is the end of the sample; for a prompt with its answers behind it, the end of the last
answer for the prompt's tokens and the end of its own answer for an answer's. So one number a token describes every
tree that is written depth first.

Rows are computed block by block with a running log-sum-exp (FlashAttention, arXiv 2205.14135), and pairs of blocks
that do not see each other are not computed: neither what lies behind a query, nor other answers, nor other samples.
The backward pass keeps the result and the log-sum-exp of each query.

Dimension names: r rows, t time, k key-value heads, q query heads of one key-value head, c head_dim, b block.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from looptool_jax.parallel.rules import BATCH, batch_shards

BLOCK = 256  # most queries and keys of a pair
ATTENDED = "attended"  # the name of what the backward pass needs and checkpointing may keep

_MASKED = -1e30


def tree_attend(
    q: Float[Array, "rows time heads head_dim"],
    k: Float[Array, "rows time kv_heads head_dim"],
    v: Float[Array, "rows time kv_heads head_dim"],
    ends: Int[Array, "rows time"],
) -> Float[Array, "rows time heads head_dim"]:
    """Softmax attention (float32, scale head_dim^-0.5) of each token over those it sees; result in the dtype of `q`.

    ends: 0 for padding, which nothing sees and whose result means nothing.
    On a mesh (`jax.set_mesh`) heads stay split over tensor, and rows over the batch axes where they divide.
    """
    time, heads = q.shape[1], q.shape[2]
    block = min(BLOCK, time)
    fill = ((0, 0), (0, -time % block), (0, 0), (0, 0))

    def split(x: Array) -> Array:
        return jnp.pad(x, fill[: x.ndim]).reshape(x.shape[0], -1, block, *x.shape[2:])

    def local(q: Array, k: Array, v: Array, ends: Array) -> Array:
        q = q.reshape(*q.shape[:3], k.shape[3], -1, q.shape[-1])
        return jax.lax.map(lambda row: _attend(*row), (q, k, v, ends)).reshape(*q.shape[:3], -1, q.shape[-1])

    inputs = (split(q * q.shape[-1] ** -0.5), split(k), split(v), split(ends))
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.axis_names:
        rows = BATCH if len(q) % batch_shards(mesh) == 0 else None
        over_heads = PartitionSpec(rows, None, None, "tensor")
        specs = (over_heads, over_heads, over_heads, PartitionSpec(rows))
        local = jax.shard_map(local, in_specs=specs, out_specs=over_heads, check_vma=False)
    return local(*inputs).reshape(len(q), -1, heads, q.shape[-1])[:, :time]


class _Pairs(NamedTuple):
    """The pairs of blocks that see each other, first to last; behind `seen` of them follow all others."""

    query: Int[Array, " pairs"]
    key: Int[Array, " pairs"]
    seen: Int[Array, ""]


def _pairs(ends: Int[Array, "blocks block"]) -> _Pairs:
    blocks, block = ends.shape
    query, key = jnp.tril_indices(blocks)
    seen = ends.max(axis=1)[key] > query * block
    order = jnp.argsort(~seen, stable=True)
    return _Pairs(query[order], key[order], seen.sum())


@jax.custom_vjp
def _attend(q: Array, k: Array, v: Array, ends: Array) -> Array:
    """One row, cut into blocks: q [n, b, k, q, c] (scaled), k and v [n, b, k, c], ends [n, b]."""
    return _forward(q, k, v, ends)[0]


def _forward(q: Array, k: Array, v: Array, ends: Array) -> tuple[Array, tuple]:
    pairs = _pairs(ends)
    heads_first = q.transpose(0, 2, 3, 1, 4)  # n k q b c

    def add(number: Array, sums: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        at, of = pairs.query[number], pairs.key[number]
        scores = jnp.where(_visible(at, of, ends), _scores(heads_first[at], k[of]), _MASKED)
        out, total, top = (x[at] for x in sums)
        new_top = jnp.maximum(top, scores.max(axis=-1))
        weights, scale = jnp.exp(scores - new_top[..., None]), jnp.exp(top - new_top)
        out = out * scale[..., None] + jnp.einsum(
            "kqbs,skc->kqbc", weights.astype(v.dtype), v[of], preferred_element_type=jnp.float32
        )
        total = total * scale + weights.sum(axis=-1)
        new = (out, total, new_top)
        return tuple(x.at[at].set(y) for x, y in zip(sums, new, strict=True))  # type: ignore[return-value]

    shape = heads_first.shape
    start = (jnp.zeros(shape, jnp.float32), jnp.zeros(shape[:-1], jnp.float32), jnp.full(shape[:-1], _MASKED))
    out, total, top = jax.lax.fori_loop(0, pairs.seen, add, start)
    total = jnp.maximum(total, jnp.finfo(jnp.float32).tiny)
    out = checkpoint_name((out / total[..., None]).astype(q.dtype).transpose(0, 3, 1, 2, 4), ATTENDED)
    return out, (q, k, v, ends, out, checkpoint_name(top + jnp.log(total), ATTENDED))


def _backward(saved: tuple, d_out: Array) -> tuple[Array, Array, Array, None]:
    q, k, v, ends, out, lse = saved
    pairs = _pairs(ends)
    delta = jnp.einsum("nbkqc,nbkqc->nkqb", d_out.astype(jnp.float32), out.astype(jnp.float32))
    heads_first, d_heads_first = (x.transpose(0, 2, 3, 1, 4) for x in (q, d_out))

    def add(number: Array, sums: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        at, of = pairs.query[number], pairs.key[number]
        q_at, d_at = heads_first[at], d_heads_first[at]
        visible = _visible(at, of, ends)
        weights = jnp.where(visible, jnp.exp(_scores(q_at, k[of]) - lse[at][..., None]), 0.0)
        d_weights = jnp.einsum("kqbc,skc->kqbs", d_at, v[of], preferred_element_type=jnp.float32)
        d_scores = (weights * (d_weights - delta[at][..., None])).astype(q.dtype)
        d_q, d_k, d_v = sums
        product = partial(jnp.einsum, preferred_element_type=jnp.float32)
        return (
            d_q.at[at].add(product("kqbs,skc->kqbc", d_scores, k[of])),
            d_k.at[of].add(product("kqbs,kqbc->skc", d_scores, q_at)),
            d_v.at[of].add(product("kqbs,kqbc->skc", weights.astype(q.dtype), d_at)),
        )

    zeros = tuple(jnp.zeros(x.shape, jnp.float32) for x in (heads_first, k, v))
    d_q, d_k, d_v = jax.lax.fori_loop(0, pairs.seen, add, zeros)
    return d_q.transpose(0, 3, 1, 2, 4).astype(q.dtype), d_k.astype(k.dtype), d_v.astype(v.dtype), None


_attend.defvjp(_forward, _backward)


def _scores(q_kqbc: Array, k_skc: Array) -> Float[Array, "kv_heads per_kv queries keys"]:
    return jnp.einsum("kqbc,skc->kqbs", q_kqbc, k_skc, preferred_element_type=jnp.float32)


def _visible(at: Array, of: Array, ends: Array) -> Bool[Array, "queries keys"]:
    block = ends.shape[1]
    query, key = (number * block + jnp.arange(block) for number in (at, of))
    return (key <= query[:, None]) & (query[:, None] < ends[of])
