"""Which logical axis lies on which mesh axis, and the shardings that follow for parameters, batches and caches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from looptool_jax.parallel.mesh import ShardingError

BATCH = ("data", "fsdp")

DECODING: Mapping[str, str] = {"vocab": "tensor", "heads": "tensor", "kv_heads": "tensor", "mlp": "tensor"}
"""Tensor parallelism only: nothing is gathered in a decoding step."""

TRAINING: Mapping[str, str] = {**DECODING, "embed": "fsdp"}
"""Parameters and optimiser state are also split over fsdp (ZeRO-3): gathered layer by layer, where they are used."""


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
                    f"{size} is not divisible by mesh axis {rules[name]}={parts}"
                )
        return NamedSharding(mesh, P(*(rules.get(name) for name in axes)))

    return jax.tree_util.tree_map_with_path(place, shapes, axes_tree)


def batch_sharding(mesh: Mesh, ndim: int) -> NamedSharding:
    """Rows of a batch [rows, ...] over (data, fsdp), the rest whole."""
    return NamedSharding(mesh, P(BATCH, *(None,) * (ndim - 1)))


def kv_sharding(mesh: Mesh, ndim: int) -> NamedSharding:
    """Keys or values [layers, rows, ..., kv_heads, head_dim]: rows over (data, fsdp), heads over tensor."""
    return NamedSharding(mesh, P(None, BATCH, *(None,) * (ndim - 4), "tensor", None))


def check_batch(mesh: Mesh, rows: int, what: str = "batch") -> None:
    """Checks that `rows` split evenly over (data, fsdp).

    Raises:
        ShardingError: they do not; names `what` and the sizes.
    """
    parts = mesh.shape["data"] * mesh.shape["fsdp"]
    if rows % parts:
        raise ShardingError(
            f"{what} of {rows} rows is not divisible by data x fsdp = {mesh.shape['data']} x {mesh.shape['fsdp']}"
        )


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, P())
