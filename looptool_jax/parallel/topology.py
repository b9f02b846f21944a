"""TPU slices by the names people use, and devices of slices that are not there, to compile for."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec


class TopologyError(ValueError):
    """A slice that is not known, or that nothing can be compiled for here."""


@dataclass(frozen=True)
class Family:
    """A TPU generation. unit: what the number in a slice's name counts; on v4 and v5p a chip has two cores, which work
    as one device (megacore). shapes: its usual slices, ascending, in chips along each dimension of the interconnect."""

    name: str
    aliases: tuple[str, ...]
    unit: str
    chip_config: str | None
    shapes: tuple[tuple[int, ...], ...]


_FLAT = ((1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16))
_CUBES = (
    (2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4), (4, 4, 4), (4, 4, 8), (4, 8, 8), (8, 8, 8), (8, 8, 16), (8, 16, 16),
)  # fmt: skip

# https://cloud.google.com/tpu/docs/v4, v5e, v5p, v6e
FAMILIES = (
    Family("v4", (), "cores", "megacore", _CUBES),
    Family("v5e", ("v5litepod",), "chips", None, _FLAT),
    Family("v5p", (), "cores", None, _CUBES),
    Family("v6e", (), "chips", None, _FLAT),
)

# Dense bfloat16 FLOP/s of a device by its kind, as JAX names it: the pages above; the data sheets of NVIDIA's H100,
# H200 and A100 (without sparsity).
PEAK_FLOPS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
}

# Read by libtpu when it is loaded: look for no machine, share with other processes, say nothing of what is missing.
_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_HOST_BOUNDS": "1,1,1",
}


@dataclass(frozen=True)
class Slice:
    """Chips of one family in one shape; a chip is one JAX device."""

    family: Family
    shape: tuple[int, ...]

    @property
    def chips(self) -> int:
        return math.prod(self.shape)

    @property
    def name(self) -> str:
        """As Google Cloud writes it, such as v5e-64 (chips) or v5p-32 (cores, two a chip)."""
        return f"{self.family.name}-{self.chips * (2 if self.family.unit == 'cores' else 1)}"

    def __str__(self) -> str:
        chips = "1 chip" if self.chips == 1 else f"{self.chips} chips"
        return f"{self.name} ({'x'.join(map(str, self.shape))}, {chips})"

    def devices(self) -> Sequence[jax.Device]:
        """Devices to compile for; nothing runs on them.

        Raises TopologyError: libtpu is not installed, or does not know this shape.
        """
        for variable, value in _ENVIRONMENT.items():
            os.environ.setdefault(variable, value)
        options: dict = {"chip_config_name": self.family.chip_config} if self.family.chip_config else {}
        if self.chips == 1:
            options["chips_per_host_bounds"] = tuple(1 for _ in range(3))
        shape = "x".join(map(str, self.shape))
        try:
            description = topologies.get_topology_desc(
                platform="tpu", topology_name=f"{self.family.name}:{shape}", **options
            )
        except Exception as error:  # RuntimeError where libtpu is missing, XLA's own errors for a shape
            if "not installed" in str(error):
                raise TopologyError(
                    "compiling for a TPU needs libtpu, which is not installed: pip install 'looptool-jax[tpu]'"
                ) from None
            usual = ", ".join("x".join(map(str, each.shape)) for each in slices(self.family.name))
            raise TopologyError(
                f"{self.family.name}:{shape}: the compiler knows no such shape; the usual ones are {usual}"
            ) from None
        return description.devices


def parse(name: str) -> Slice:
    """The slice of a name: v5e-64, v5litepod-64, v5e:8x8, v6e-8, v5p-32 (16 chips of two cores), v4-16 (8 chips).

    Raises TopologyError: no such family or size.
    """
    match = re.fullmatch(r"([a-z0-9]+)(?:-(\d+)|:(\d+(?:x\d+)+))", name.strip().lower())
    if not match:
        raise TopologyError(f"{name!r} is no TPU slice; {_known()}")
    family = find_family(match[1])
    if match[3]:
        shape = tuple(int(size) for size in match[3].split("x"))
        if len(shape) != len(family.shapes[0]) or min(shape) < 1:
            raise TopologyError(
                f"{name}: a {family.name} slice has {len(family.shapes[0])} dimensions, each at least 1; {_known()}"
            )
        return Slice(family, shape)
    for slice_ in slices(family.name):
        if slice_.name == f"{family.name}-{int(match[2])}":
            return slice_
    sizes = ", ".join(slice_.name for slice_ in slices(family.name))
    raise TopologyError(f"{name}: no such slice (the number counts {family.unit}); there are {sizes}")


def find_family(name: str) -> Family:
    """Raises TopologyError: no such family."""
    for family in FAMILIES:
        if name in (family.name, *family.aliases):
            return family
    raise TopologyError(f"{name!r} is no TPU family; {_known()}")


def slices(family: str) -> list[Slice]:
    """The usual slices of a family, smallest first. Raises TopologyError."""
    found = find_family(family)
    return [Slice(found, shape) for shape in found.shapes]


def available_hbm(device: jax.Device) -> int | None:
    """Bytes of device memory that a program may use: what a device here says, or the compiler's limit for one that is
    not here. None where the device does not tell (a CPU).

    Raises TopologyError: the compiler names no limit.
    """
    if device.platform != "tpu" or device in jax.devices():
        stats = device.memory_stats()
        return stats["bytes_limit"] if stats else None
    everywhere = NamedSharding(Mesh([device], "x"), PartitionSpec())
    too_large = jax.ShapeDtypeStruct((2**38,), jnp.int8, sharding=everywhere)
    try:
        jax.jit(jnp.negative).lower(too_large).compile()
    except jax.errors.JaxRuntimeError as error:
        if shortage := read_shortage(str(error)):
            return shortage[1]
    raise TopologyError(f"the compiler names no memory limit for {device.device_kind}")


def read_shortage(message: str) -> tuple[int, int] | None:
    """Bytes that a program needs and bytes there are, from the compiler's message that it does not fit."""
    match = re.search(r"total memory required.*?\(([\d.]+[KMGT]?)\).*?available HBM \(([\d.]+[KMGT]?)\)", message, re.S)
    return (_bytes(match[1]), _bytes(match[2])) if match else None


def _bytes(text: str) -> int:
    unit = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}.get(text[-1])
    return round(float(text[:-1]) * unit) if unit else round(float(text))


def _known() -> str:
    return f"known families are {', '.join(family.name for family in FAMILIES)}, a slice is v5e-64, v5e:8x8 or v5p-32"
