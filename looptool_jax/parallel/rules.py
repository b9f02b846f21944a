"""Which logical axis lies on which mesh axis, and the shardings that follow for parameters, batches and caches."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from looptool_jax.parallel.mesh import ShardingError

BATCH = ("data", "fsdp", "expert")
"""The mesh axes over which the rows of a batch are split."""

DECODING: Mapping[str, str] = {
    "vocab": "tensor",
    "heads": "tensor",
    "kv_heads": "tensor",
    "mlp": "tensor",
    "expert": "expert",
}
"""Tensor and expert parallelism only: no parameter is gathered in a decoding step."""

TRAINING: Mapping[str, str] = {**DECODING, "embed": "fsdp"}
"""Parameters and optimiser state are also split over fsdp (ZeRO-3): gathered layer by layer, where they are used."""


def spec(axes: tuple[str, ...], rules: Mapping[str, str]) -> P:
    """The mesh axes of one array; a logical axis that is not in `rules` is not split."""
    return P(*(rules.get(name) for name in axes))


def param_shardings(mesh: Mesh, axes_tree: Any, shapes: Any, rules: Mapping[str, str] = TRAINING) -> Any:
    """A sharding for every parameter.

    Args:
        axes_tree: tuples of logical axis names (`models.decoder.logical_axes`).
        shapes: a parallel tree of arrays or `jax.ShapeDtypeStruct`s (`models.decoder.abstract_params`).
        rules: logical axis -> mesh axis, `TRAINING` or `DECODING`; what is not in it is replicated.

    Raises:
        ShardingError: a dimension is not divisible by its mesh axis; names parameter, axis and sizes.
    """

    def place(path: Any, leaf: Any, axes: tuple[str, ...]) -> NamedSharding:
        for name, size in zip(axes, leaf.shape, strict=True):
            parts = mesh.shape[rules[name]] if name in rules else 1
            if size % parts:
                raise ShardingError(
                    f"parameter {jax.tree_util.keystr(path, simple=True, separator='.')}: its axis {name} of size "
                    f"{size} is not divisible by mesh axis {rules[name]}={parts}; choose a mesh whose {rules[name]} "
                    "axis divides it"
                )
        return NamedSharding(mesh, spec(axes, rules))

    return jax.tree_util.tree_map_with_path(place, shapes, axes_tree)


def placed(shapes: Any, shardings: Any) -> Any:
    """A tree of arrays or shapes as `jax.ShapeDtypeStruct`s with these shardings."""
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)


def batch_sharding(mesh: Mesh, ndim: int) -> NamedSharding:
    """Rows of a batch [rows, ...] over `BATCH`, the rest whole."""
    return NamedSharding(mesh, P(BATCH, *(None,) * (ndim - 1)))


def kv_sharding(mesh: Mesh, ndim: int) -> NamedSharding:
    """Keys or values [layers, rows, ..., kv_heads, time, head_dim]: rows over `BATCH`, heads over tensor."""
    return NamedSharding(mesh, P(None, BATCH, *(None,) * (ndim - 5), "tensor", None, None))


def prefix_sharding(mesh: Mesh) -> NamedSharding:
    """Keys and values of prompts on their way into slots, [layers, prompts, kv_heads, ...]: any slot may take any."""
    return NamedSharding(mesh, P(None, None, "tensor"))


def batch_shards(mesh: Mesh | AbstractMesh) -> int:
    """Over how many shards the rows of a batch are split."""
    return math.prod(mesh.shape[axis] for axis in BATCH)


def check_batch(mesh: Mesh, rows: int, what: str = "batch") -> None:
    """Checks that `rows` split evenly over `BATCH`.

    Raises:
        ShardingError: they do not; names `what` and the sizes.
    """
    if rows % batch_shards(mesh):
        sizes = " x ".join(str(mesh.shape[axis]) for axis in BATCH)
        raise ShardingError(f"{what} of {rows} rows is not divisible by {' x '.join(BATCH)} = {sizes}")


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, P())
