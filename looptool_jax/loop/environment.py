"""What a run ran with: versions, devices, models. Not in the manifest, as it may differ between a run's processes."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from looptool_jax.data.store import Progress, exists, is_url, list_names

NAME = "environment.jsonl"
PACKAGES = (
    "looptool-jax", "jax", "jaxlib", "libtpu", "jax-cuda12-plugin", "flax", "optax", "orbax-checkpoint", "qwix",
    "google-jetstream", "transformers", "tokenizers", "llguidance", "safetensors", "numpy",
)  # fmt: skip


def record_environment(path: str, models: Mapping[str, int | None], adapters: bool) -> None:
    """Append a row for this process, unless the last one says the same.

    models: parameters that a token goes through, by role; None for a model behind a server. adapters: whether training
    leaves the weights themselves as they are.
    """
    import jax

    row = {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "devices": {"kind": jax.devices()[0].device_kind, "count": jax.device_count(), "hosts": jax.process_count()},
        "packages": {name: found for name in PACKAGES if (found := _version(name))},
        "models": dict(models),
        "adapters": adapters,
    }
    progress = Progress(path)
    if progress.rows()[-1:] != [row]:
        progress.append(row)


def environments(path: str) -> list[dict[str, Any]]:
    """The rows, in the order in which processes came; none where a run has recorded none."""
    there = list_names(path) if is_url(path) else exists(path)
    return Progress(path).rows() if there else []


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
