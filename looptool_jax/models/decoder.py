"""Decoders (Llama, Qwen) as a Flax NNX module and as plain functions over its stacked parameter tree.

The module defines the parameters once (every leaf of `layers` is stacked [layers, ...]). It is split once; what is
compiled are the functions below, which scan over layers and take the caches as explicit arguments. Matrix products run
in the dtype of the parameters; norms, rotary embeddings, softmax and logits in float32.

Shardings come with the arguments. Callers on a mesh trace under `jax.set_mesh(mesh)`: activations are then pinned to
rows over the batch axes, so that the compiler gathers parameters, not activations.

Dimension names: b batch, n prompts, g answers of a group, t/r time, d embed, h heads, k kv_heads, f mlp, v vocab.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, PRNGKeyArray

from looptool_jax.models.attention import KV, Cache, attend
from looptool_jax.models.config import DecoderConfig
from looptool_jax.models.linear import project
from looptool_jax.models.moe import mixture
from looptool_jax.models.rope import Rotation, rotate, rotation
from looptool_jax.models.splash import splash_attend
from looptool_jax.models.tree_attention import ATTENDED, tree_attend
from looptool_jax.parallel.rules import BATCH, batch_shards

Params = dict[str, Any]
Axes = tuple[str, ...]
Attention = Literal["xla", "splash"]
Remat = Literal["none", "attention", "full"]

_ANY = PartitionSpec.UNCONSTRAINED


class Layers(nnx.Module):
    """The parameters of all layers, stacked on the leading axis."""

    def __init__(self, cfg: DecoderConfig, *, rngs: nnx.Rngs, dtype: DTypeLike) -> None:
        n_layers, d = cfg.num_layers, cfg.hidden_size
        heads, kv_heads, head_dim = cfg.num_heads, cfg.num_kv_heads, cfg.head_dim
        ones = partial(_ones, dtype=dtype)
        matrix = partial(_matrix, rngs=rngs, dtype=dtype)
        residual = (2 * n_layers) ** -0.5
        self.attention_norm = ones((n_layers, d), ("layers", "embed"))
        self.q = matrix((n_layers, d, heads, head_dim), ("layers", "embed", "heads", "head_dim"), d**-0.5)
        self.k = matrix((n_layers, d, kv_heads, head_dim), ("layers", "embed", "kv_heads", "head_dim"), d**-0.5)
        self.v = matrix((n_layers, d, kv_heads, head_dim), ("layers", "embed", "kv_heads", "head_dim"), d**-0.5)
        self.o = matrix(
            (n_layers, heads, head_dim, d),
            ("layers", "heads", "head_dim", "embed"),
            residual * (heads * head_dim) ** -0.5,
        )
        if cfg.qkv_bias:
            zeros = partial(_zeros, dtype=dtype)
            self.q_bias = zeros((n_layers, heads, head_dim), ("layers", "heads", "head_dim"))
            self.k_bias = zeros((n_layers, kv_heads, head_dim), ("layers", "kv_heads", "head_dim"))
            self.v_bias = zeros((n_layers, kv_heads, head_dim), ("layers", "kv_heads", "head_dim"))
        if cfg.qk_norm:
            self.q_norm = ones((n_layers, head_dim), ("layers", "head_dim"))
            self.k_norm = ones((n_layers, head_dim), ("layers", "head_dim"))
        self.mlp_norm = ones((n_layers, d), ("layers", "embed"))
        f, stack, axes = cfg.intermediate_size, [n_layers], ["layers"]
        if cfg.experts is not None:
            self.router = matrix((n_layers, d, cfg.experts.count), ("layers", "embed", "choices"), d**-0.5)
            f, stack, axes = cfg.experts.intermediate_size, [n_layers, cfg.experts.count], ["layers", "expert"]
        self.gate = matrix((*stack, d, f), (*axes, "embed", "mlp"), d**-0.5)
        self.up = matrix((*stack, d, f), (*axes, "embed", "mlp"), d**-0.5)
        self.down = matrix((*stack, f, d), (*axes, "mlp", "embed"), residual * f**-0.5)


class Decoder(nnx.Module):
    """All parameters of a decoder, with the logical axis names of each (metadata `axes`)."""

    def __init__(self, cfg: DecoderConfig, *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32) -> None:
        matrix = partial(_matrix, rngs=rngs, dtype=dtype)
        self.embedding = matrix((cfg.vocab_size, cfg.hidden_size), ("vocab", "embed"), 0.02)
        self.layers = Layers(cfg, rngs=rngs, dtype=dtype)
        self.final_norm = _ones((cfg.hidden_size,), ("embed",), dtype=dtype)
        if not cfg.tie_embeddings:
            self.unembedding = matrix((cfg.vocab_size, cfg.hidden_size), ("vocab", "embed"), 0.02)


def init_params(cfg: DecoderConfig, key: PRNGKeyArray, dtype: DTypeLike = jnp.float32) -> Params:
    """Random parameters as a nested dict; traceable (under `jax.jit` with `out_shardings` it creates them in place)."""
    return nnx.to_pure_dict(nnx.state(Decoder(cfg, rngs=nnx.Rngs(key), dtype=dtype)))


def abstract_params(cfg: DecoderConfig, dtype: DTypeLike = jnp.float32) -> Params:
    """The parameter tree as `jax.ShapeDtypeStruct`s."""
    return jax.eval_shape(lambda: init_params(cfg, jax.random.key(0), dtype))


def active_parameters(cfg: DecoderConfig) -> int:
    """The parameters that a token is multiplied with: not the embedding that it is looked up in, and of experts those
    that it goes to. A forward pass takes about two operations for each, a backward pass four (Kaplan et al., 2020,
    section 2.1; attention's own products are left out)."""
    params = abstract_params(cfg)
    looked_up = 0 if cfg.tie_embeddings else params["embedding"].size
    idle = 0
    if cfg.experts is not None:
        idle = cfg.num_layers * 3 * cfg.hidden_size * cfg.experts.intermediate_size
        idle *= cfg.experts.count - cfg.experts.per_token
    return sum(leaf.size for leaf in jax.tree.leaves(params)) - looked_up - idle


def logical_axes(cfg: DecoderConfig) -> Params:
    """A tree parallel to the parameters whose leaves are tuples of logical axis names, one per dimension."""
    module = nnx.eval_shape(lambda: Decoder(cfg, rngs=nnx.Rngs(0)))
    state = nnx.state(module)
    return nnx.to_pure_dict(jax.tree.map(lambda leaf: leaf.get_metadata("axes"), state, is_leaf=_is_variable))


def forward(
    params: Params,
    cfg: DecoderConfig,
    tokens: Int[Array, "batch time"],
    positions: Int[Array, "batch time"],
    ends: Int[Array, "batch time"],
    *,
    remat: Remat = "none",
    attention: Attention = "xla",
) -> tuple[Float[Array, "batch time embed"], KV]:
    """Whole rows: training on packed rows, prefill of prompts, prompts with all of their answers.

    ends: one behind the place of the last token that sees this one; 0 is padding, whose results mean nothing. Token i
    sees token j where j <= i < ends[j] (`tree_attention`). What several tokens see is computed once, and their
    gradients add up in it.
    remat: what of a layer is computed again in the backward pass: nothing; everything but attention, whose results are
    kept; or everything, so that only what comes into a layer is kept.
    attention: the splash kernel takes trees that fork once at most, aligned as it wants them (`splash.alignment`).

    Returns:
        hidden after the final norm, and the keys and values [layers, batch, time, kv_heads, head_dim].
    """
    angles = rotation(cfg, positions)
    attend_to = tree_attend if attention == "xla" else splash_attend

    def mix(q: Array, kv: KV) -> Array:
        return attend_to(q, kv.k, kv.v, ends)

    def layer(x_btd: Array, p: Params) -> tuple[Array, KV]:
        return _layer(cfg, p, x_btd, angles, mix)

    x_btd, kv = jax.lax.scan(_checkpointed(layer, remat), _embed(params, tokens), params["layers"])
    return _rms_norm(cfg, x_btd, params["final_norm"]), kv


def decode_step(
    params: Params,
    cfg: DecoderConfig,
    tokens: Int[Array, "prompts group time"],
    positions: Int[Array, "prompts group time"],
    caches: Sequence[Cache],
) -> tuple[Float[Array, "prompts group time embed"], KV]:
    """The next tokens of every answer: each sees what the caches hold, those before it and itself. The caches are only
    read.

    Returns:
        hidden after the final norm, and the tokens' keys and values [layers, prompts, group, kv_heads, time, head_dim].
    """
    angles = rotation(cfg, positions)

    def layer(x_ngtd: Array, inputs: tuple[Params, Array]) -> tuple[Array, KV]:
        p, number = inputs
        x_ngtd, kv = _layer(cfg, p, x_ngtd, angles, lambda q, own: attend(q, own, caches, number))
        return x_ngtd, jax.tree.map(lambda x: x.swapaxes(-3, -2), kv)

    x_ngtd, new = jax.lax.scan(layer, _embed(params, tokens), (params["layers"], jnp.arange(cfg.num_layers)))
    return _rms_norm(cfg, x_ngtd, params["final_norm"]), new


def cached(kv: KV, dtype: DTypeLike) -> KV:
    """Keys and values of whole rows [..., time, kv_heads, head_dim] as caches hold them, time behind the heads."""
    return jax.tree.map(lambda x: x.swapaxes(-3, -2).astype(dtype), kv)


def put(cache: KV, new: KV, place: Int[Array, ""]) -> KV:
    """A cache of answers with the keys and values of tokens, as from `decode_step`, from one place of every row on."""
    write = partial(jax.lax.dynamic_update_slice_in_dim, start_index=place, axis=4)
    return jax.tree.map(lambda old, entry: write(old, entry.astype(old.dtype)), cache, new)


def logits(params: Params, cfg: DecoderConfig, hidden: Float[Array, "... embed"]) -> Float[Array, "... vocab"]:
    """Next-token logits in float32 of hidden states after the final norm."""
    table_vd = params["embedding"] if cfg.tie_embeddings else params["unembedding"]
    return project("...d,vd->...v", hidden, table_vd, jnp.float32)


def _layer(
    cfg: DecoderConfig, p: Params, x: Array, angles: Rotation, mix: Callable[[Array, KV], Array]
) -> tuple[Array, KV]:
    """One layer on x [..., time, embed]; `mix(q, own keys and values)` is the attention."""
    lead, x_rd = x.shape[:-1], x.reshape(-1, x.shape[-1])
    y_rd = _rms_norm(cfg, x_rd, p["attention_norm"])
    q = project("rd,dhc->rhc", y_rd, p["q"])
    k = project("rd,dkc->rkc", y_rd, p["k"])
    v = project("rd,dkc->rkc", y_rd, p["v"])
    if cfg.qkv_bias:
        q, k, v = q + p["q_bias"], k + p["k_bias"], v + p["v_bias"]
    if cfg.qk_norm:
        q, k = _rms_norm(cfg, q, p["q_norm"]), _rms_norm(cfg, k, p["k_norm"])
    q, k, v = (heads.reshape(*lead, *heads.shape[1:]) for heads in (q, k, v))
    kv = KV(rotate(k, angles), v)
    mixed_rhc = mix(rotate(q, angles), kv).reshape(-1, *q.shape[-2:])
    x_rd = x_rd + project("rhc,hcd->rd", mixed_rhc, p["o"])
    y_rd = _rms_norm(cfg, x_rd, p["mlp_norm"])
    x_rd = x_rd + (_mlp(p, y_rd) if cfg.experts is None else mixture(cfg.experts, p, y_rd))
    return _by_rows(x_rd.reshape(x.shape)), kv


def _mlp(p: Params, x_rd: Array) -> Array:
    gate, up = project("rd,df->rf", x_rd, p["gate"]), project("rd,df->rf", x_rd, p["up"])
    return project("rf,fd->rd", jax.nn.silu(gate) * up, p["down"])


def _embed(params: Params, tokens: Array) -> Array:
    return _by_rows(_constrain(params["embedding"], _ANY, None)[tokens])


def _by_rows(x: Array) -> Array:
    """Activations are split by rows and whole in the embed axis: it is parameters that are gathered over fsdp."""
    return _constrain(x, BATCH, *(_ANY,) * (x.ndim - 2), None)


def _constrain(x: Array, *dims: Any) -> Array:
    """Pins the sharding of `x` where the project's mesh is in use (`jax.set_mesh`) and rows split evenly over it."""
    mesh = jax.sharding.get_abstract_mesh()
    if not set(BATCH) <= set(mesh.axis_names):
        return x
    if dims[0] == BATCH and x.shape[0] % batch_shards(mesh):
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*dims))


def _rms_norm(cfg: DecoderConfig, x: Array, weight: Array) -> Array:
    y = x.astype(jnp.float32)
    y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + cfg.rms_norm_eps)
    return (y * weight.astype(jnp.float32)).astype(x.dtype)


def _checkpointed(layer: Callable, remat: Remat) -> Callable:
    if remat == "none":
        return layer
    kept = jax.checkpoint_policies.save_only_these_names(*(ATTENDED,) if remat == "attention" else ())
    return jax.checkpoint(layer, prevent_cse=False, policy=kept)


def _matrix(shape: tuple[int, ...], axes: Axes, std: float, *, rngs: nnx.Rngs, dtype: DTypeLike) -> nnx.Param:
    value = std * jax.random.normal(rngs.params(), shape, jnp.float32)
    return nnx.Param(value.astype(dtype), axes=axes)


def _ones(shape: tuple[int, ...], axes: Axes, *, dtype: DTypeLike) -> nnx.Param:
    return nnx.Param(jnp.ones(shape, dtype), axes=axes)


def _zeros(shape: tuple[int, ...], axes: Axes, *, dtype: DTypeLike) -> nnx.Param:
    return nnx.Param(jnp.zeros(shape, dtype), axes=axes)


def _is_variable(leaf: Any) -> bool:
    return isinstance(leaf, nnx.Variable)
