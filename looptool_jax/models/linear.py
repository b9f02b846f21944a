"""The products of activations and weights: every matrix of a decoder is applied here.

A weight is an array, an int8 array with a scale for each of its outputs (qwix), or either of them with a low-rank term.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import qwix
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

MATRICES = ("q", "k", "v", "o", "gate", "up", "down")  # of a layer, by their names in the parameter tree

Weight = Any  # Float[Array, "..."] | qwix.QArray | LowRank


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LowRank:
    """The weight base + scale · a b (LoRA, arXiv 2106.09685)."""

    base: Weight
    a: Float[Array, "... rank"]
    b: Float[Array, "rank ..."]
    scale: float = field(metadata={"static": True})


def project(equation: str, x: Float[Array, ...], w: Weight, dtype: DTypeLike | None = None) -> Float[Array, ...]:
    """`x` times the weight `w` by an einsum equation ("rd,df->rf").

    Args:
        dtype: of the result and its accumulation; None: that of `x`.
    """
    if not is_compound(w):
        return jnp.einsum(equation, x, w, preferred_element_type=dtype)
    operands, _, result = equation.partition("->")
    of_x, of_w = operands.split(",")
    inputs = "".join(name for name in of_w if name in of_x)
    if isinstance(w, LowRank):
        rows = "".join(name for name in of_x if name not in inputs)
        low = jnp.einsum(f"{of_x},{inputs}z->{rows}z", x, w.a.astype(x.dtype))
        term = jnp.einsum(f"{rows}z,z{of_w[len(inputs) :]}->{result}", low, w.b.astype(x.dtype))
        return project(equation, x, w.base, dtype) + w.scale * term
    # The scales belong to the outputs: applied to the product, they leave the weight to be read as int8.
    product = jnp.einsum(equation, x, w.qvalue.astype(x.dtype), preferred_element_type=jnp.float32)
    return (product * w.scale.reshape(w.scale.shape[len(inputs) :])).astype(dtype or x.dtype)


def project_parts(
    x: Float[Array, "rows in_dim"], w: Weight, sizes: Int[Array, " parts"]
) -> Float[Array, "rows out_dim"]:
    """Consecutive parts of rows, each times its own weight [parts, in_dim, out_dim]: `sizes[0]` rows times `w[0]`, and
    so on. Rows past the last part are not defined.
    """
    if not isinstance(w, qwix.QArray):
        return jax.lax.ragged_dot(x, w, sizes)
    product = jax.lax.ragged_dot(x, w.qvalue.astype(x.dtype), sizes, preferred_element_type=jnp.float32)
    part = jnp.repeat(jnp.arange(len(sizes)), sizes, total_repeat_length=len(x))
    return (product * w.scale[part, 0]).astype(x.dtype)


def quantized(w: Float[Array, "*in_and_out"], inputs: tuple[int, ...]) -> qwix.QArray:
    """The weight in int8, symmetric, with a float32 scale for every index but those of the axes `inputs`."""
    outputs = [axis for axis in range(w.ndim) if axis not in inputs]
    return qwix.quantize(w, jnp.int8, channelwise_axes=outputs, scale_dtype=jnp.float32)


def quantize_layers(params: Any) -> Any:
    """The parameters of a decoder with the matrices of the layers in int8; traceable."""
    layers = dict(params["layers"])
    for name in MATRICES:
        layers[name] = quantized(layers[name], tuple(1 + axis for axis in input_axes(name, layers[name].ndim - 1)))
    return {**params, "layers": layers}


def input_count(name: str) -> int:
    """How many axes of a layer's matrix are its input; those of its output come behind them."""
    return 2 if name == "o" else 1


def input_axes(name: str, ndim: int) -> tuple[int, ...]:
    """Which axes of one layer's matrix are its input; those before them number experts."""
    outputs = 2 if name in ("q", "k", "v") else 1
    end = ndim - outputs
    return tuple(range(end - input_count(name), end))


def low_rank_axes(axes: tuple[str, ...], split: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The logical axes of `a` and `b` beside a stacked weight whose first `split` axes are layers and its input."""
    return (*axes[:split], "rank"), (*axes[:1], "rank", *axes[split:])


def is_compound(weight: Weight) -> bool:
    """Whether a weight is made of several arrays."""
    return isinstance(weight, LowRank | qwix.QArray)


def axes_of(params: Any, axes: Any) -> Any:
    """The logical axes of every array in `params`, from those of its weights (`decoder.logical_axes`)."""
    return jax.tree.map(_axes_of, params, axes, is_leaf=is_compound)


def _axes_of(weight: Weight, axes: tuple[str, ...]) -> Any:
    if isinstance(weight, LowRank):
        a: Any
        b: Any
        a, b = low_rank_axes(axes, weight.a.ndim - 1)
        return LowRank(_axes_of(weight.base, axes), a, b, weight.scale)
    if isinstance(weight, qwix.QArray):
        of_scale = tuple(axis if size > 1 else "one" for axis, size in zip(axes, weight.scale.shape, strict=True))
        return qwix.QArray(axes, of_scale, None, weight.qtype)
    return axes


def cast(params: Any, dtype: DTypeLike) -> Any:
    """The parameters in another float dtype; int8 weights and their scales stay as they are."""
    return jax.tree.map(
        lambda leaf: leaf if isinstance(leaf, qwix.QArray) else leaf.astype(dtype),
        params,
        is_leaf=lambda leaf: isinstance(leaf, qwix.QArray),
    )
