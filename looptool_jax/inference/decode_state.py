"""What an engine keeps on the devices between its calls: prompts, answers, and what is known of each row."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped, UInt32

from looptool_jax.models.attention import KV, Cache


class Prefix(NamedTuple):
    """N prefilled prompts, padded to one bucket of T tokens."""

    kv: KV
    """[layers, N, kv_heads, T, head_dim]"""
    logits: Float[Array, "N vocab"]
    """float32, after the last prompt token"""
    length: Int[Array, " N"]


class Rows(NamedTuple):
    """What an engine knows of its S slots and their G rows."""

    prompt_length: Int[Array, " S"]
    token: Int[Array, "S G"]
    """chosen, not yet handed out"""
    logprob: Float[Array, "S G"]
    """of `token`"""
    lead: Float[Array, "S G"]
    """by how much the largest logit was above the next when `token` was chosen"""
    length: Int[Array, "S G"]
    """answer tokens handed out so far"""
    done: Bool[Array, "S G"]
    max_new: Int[Array, " S"]
    temperature: Float[Array, " S"]
    key: UInt32[Array, "S G 2"]


class DecodeState(NamedTuple):
    """Everything a decode step reads and writes: S slots of one prompt (up to P tokens: the engine's `prompt_len`, and
    behind it drafted tokens that decoding goes on from) and G answers (up to R)."""

    prompt_kv: KV
    """[layers, S, kv_heads, P, head_dim]"""
    answer_kv: KV
    """[layers, S, G, kv_heads, R, head_dim]"""
    rows: Rows


def caches_at_work(state: DecodeState) -> tuple[Cache, Cache]:
    """The prompts and the answers as far as those at work see them."""
    at_work = ~state.rows.done
    prompt = jnp.where(at_work.any(axis=1), state.rows.prompt_length, 0)[:, None]
    answer = jnp.where(at_work, state.rows.length, 0)
    return Cache(state.prompt_kv, prompt, prompt.max()), Cache(state.answer_kv, answer, answer.max())


def append(
    cache: Shaped[Array, "layers S G kv_heads R head_dim"],
    new: Shaped[Array, "layers S G kv_heads k head_dim"],
    start: Int[Array, "S G"],
) -> Shaped[Array, "layers S G kv_heads R head_dim"]:
    """The cache with the k entries of `new` from place `start` of each row on; what lies behind its end is lost."""
    place = jnp.arange(cache.shape[4]) - start[..., None]
    for i in range(new.shape[4]):
        cache = jnp.where((place == i)[:, :, None, :, None], new[:, :, :, :, i : i + 1], cache)
    return cache


def put_into_slots(target: Array, new: Array, slots: Int[Array, " N"], axis: int = 0) -> Array:
    """The N entries of `new` along `axis`, each written over the beginning of what its slot holds."""
    for i in range(new.shape[axis]):
        entry = jax.lax.slice_in_dim(new, i, i + 1, axis=axis).astype(target.dtype)
        start = [slots[i] if dim == axis else 0 for dim in range(target.ndim)]
        target = jax.lax.dynamic_update_slice(target, entry, start)
    return target
