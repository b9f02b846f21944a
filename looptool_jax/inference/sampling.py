"""Choosing the next token, with random keys that belong to the request and not to the batch.

The key of answer token t of a row is `fold_in(row_key, t)`, and `row_key = fold_in(request_key, group index)`.
So a token depends on its logits and its key alone: not on the slot, the neighbours or the order of requests.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt32


def row_keys(request_keys: UInt32[Array, "N 2"], group: int) -> UInt32[Array, "N G 2"]:
    """The key of every row of every request (threefry key data)."""

    def rows(key_data: UInt32[Array, " 2"]) -> UInt32[Array, "G 2"]:
        key = jax.random.wrap_key_data(key_data, impl="threefry2x32")
        return jax.vmap(lambda index: jax.random.key_data(jax.random.fold_in(key, index)))(jnp.arange(group))

    return jax.vmap(rows)(request_keys)


def restrict(logits: Float[Array, "*rows V"], top_k: int, top_p: float) -> Float[Array, "*rows V"]:
    """Set to -inf what lies outside the `top_k` largest logits (0: no limit) and outside the nucleus: the smallest
    set of most probable tokens whose mass reaches `top_p`. Tokens that tie with the last one kept are kept too."""
    if top_k:
        threshold = jax.lax.top_k(logits, min(top_k, logits.shape[-1]))[0][..., -1:]
        logits = jnp.where(logits < threshold, -jnp.inf, logits)
    if top_p < 1.0:
        descending = jnp.sort(logits, axis=-1, descending=True)
        probabilities = jax.nn.softmax(descending, axis=-1)
        mass_before = jnp.cumsum(probabilities, axis=-1) - probabilities
        threshold = jnp.min(jnp.where(mass_before < top_p, descending, jnp.inf), axis=-1, keepdims=True)
        logits = jnp.where(logits < threshold, -jnp.inf, logits)
    return logits


def only(logits: Float[Array, "*rows V"], allowed: Int[Array, "*rows words"]) -> Float[Array, "*rows V"]:
    """Set to -inf what has no bit: of token t, bit t % 32 of word t // 32."""
    bits = (allowed[..., None] >> jnp.arange(32)) & 1
    return jnp.where(bits.reshape(*logits.shape[:-1], -1)[..., : logits.shape[-1]] == 1, logits, -jnp.inf)


def best_and_lead(
    logits: Float[Array, "*rows V"],
) -> tuple[Int[Array, "*rows"], Float[Array, "*rows"], Float[Array, "*rows"]]:
    """The arg-max (int32), how far it is above the next logit, and the log of the sum of exponentials."""
    best = jnp.argmax(logits, axis=-1).astype(jnp.int32)
    top = jnp.take_along_axis(logits, best[..., None], axis=-1)[..., 0]
    others = jnp.where(jnp.arange(logits.shape[-1]) == best[..., None], -jnp.inf, logits)
    return best, top - others.max(axis=-1), jax.nn.logsumexp(logits, axis=-1)


def sample(
    logits: Float[Array, "N V"],
    keys: UInt32[Array, "N 2"],
    index: Int[Array, " N"],
    temperature: Float[Array, " N"],
    *,
    top_k: int = 0,
    top_p: float = 1.0,
) -> tuple[Int[Array, " N"], Float[Array, " N"], Float[Array, " N"]]:
    """Choose token number `index` of every row. Temperature 0 takes the arg-max, otherwise Gumbel-max in float32.

    Returns the tokens (int32) and their log-probs (float32) under the raw logits, that is at temperature 1 and
    without `top_k` and `top_p`, whatever the token was drawn with; and by how much the largest logit is above the next.
    """
    logits = logits.astype(jnp.float32)
    greedy, lead, logsumexp = best_and_lead(logits)

    def draw() -> Int[Array, " N"]:
        def noise(key_data: UInt32[Array, " 2"], token: Int[Array, ""]) -> Float[Array, " V"]:
            key = jax.random.fold_in(jax.random.wrap_key_data(key_data, impl="threefry2x32"), token)
            return jax.random.gumbel(key, logits.shape[-1:], jnp.float32)

        scaled = logits / jnp.where(temperature > 0, temperature, 1.0)[:, None]
        drawn = jnp.argmax(restrict(scaled, top_k, top_p) + jax.vmap(noise)(keys, index), axis=-1).astype(jnp.int32)
        return jnp.where(temperature > 0, drawn, greedy)

    any_drawn: Bool[Array, ""] = jnp.any(temperature > 0)
    tokens = jax.lax.cond(any_drawn, draw, lambda: greedy)
    chosen = jnp.take_along_axis(logits, tokens[:, None], axis=-1)[:, 0]
    return tokens, chosen - logsumexp, lead
