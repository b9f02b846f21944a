"""The device mesh: axes data (replicas), fsdp (parameters split in training), expert and tensor.

`expert` splits the experts of a mixture and `tensor` heads and features. The rows of a batch lie over data, fsdp and
expert: only inside the mixture do expert shards work on rows of each other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import jax
from jax.sharding import AxisType, Mesh

AXES = ("data", "fsdp", "expert", "tensor")


class ShardingError(ValueError):
    """A mesh that does not fit the devices, or an array that does not fit the mesh."""


@dataclass(frozen=True)
class MeshConfig:
    """Devices per axis; at most one of them may be -1, which takes what the others leave."""

    data: int = 1  # rows are split, parameters are copied
    fsdp: int = -1  # rows and, in training, parameters are split
    tensor: int = 1  # heads and hidden units are split
    expert: int = 1  # rows and experts are split

    def shape(self, device_count: int) -> tuple[int, ...]:
        """The sizes of `AXES` for this many devices.

        Raises:
            ShardingError: the sizes do not multiply to `device_count`.
        """
        sizes = tuple(getattr(self, axis) for axis in AXES)
        named = ", ".join(f"{axis}={size}" for axis, size in zip(AXES, sizes, strict=True))
        if any(size < 1 and size != -1 for size in sizes) or sizes.count(-1) > 1:
            raise ShardingError(f"mesh {named}: sizes must be positive, and at most one may be -1 (the rest)")
        fixed = math.prod(size for size in sizes if size != -1)
        if device_count % fixed or (-1 not in sizes and fixed != device_count):
            raise ShardingError(
                f"mesh {named} does not fit {device_count} devices: the product of the axes must be that"
            )
        return tuple(device_count // fixed if size == -1 else size for size in sizes)


def make_mesh(cfg: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh with the axes `AXES` over `devices` (default: all), in an order that suits the interconnect.

    Raises:
        ShardingError: the sizes do not multiply to the number of devices.
    """
    devices = list(jax.devices() if devices is None else devices)
    return jax.make_mesh(cfg.shape(len(devices)), AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)
