"""Checkpoints: one Orbax folder with the arrays and a sealed JSON beside them, committed as a whole."""

from __future__ import annotations

import functools
import hashlib
import json
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.sharding import NamedSharding, PartitionSpec

from looptool_jax.data.files import is_url, local_path
from looptool_jax.parallel.processes import meet

COMMIT_FILE = "commit_success.txt"  # Orbax's, on object stores
SLICE_BYTES = 1 << 28  # of an array are hashed at a time; at least one index of its leading axis

_STEP_NAME = re.compile(r"step_\d{8}")


class CheckpointError(ValueError):
    """A checkpoint that is missing, unfinished, damaged or of another model; the message says where and what to do."""


class Restored(NamedTuple):
    state: Any  # like the abstract state it was restored into
    extra: dict[str, Any]  # what `save` was given
    hash: str  # `logical_hash` of the state


def save(path: epath.PathLike, state: Any, extra: dict[str, Any], keep: int | None = None) -> str:
    """Writes any tree of arrays (a TrainState; parameters alone) and returns its `logical_hash`.

    Returns after the commit: the folder appears under its name only when complete. A folder that is already there
    is replaced. Every process must call it, with the same `extra`.

    Args:
        path: local folder or object-store URL.
        extra: JSON data that continues the run: data cursor, random keys, round.
        keep: of the `step_path` folders beside `path`, leave only the newest this many, and none unfinished.
    """
    path = _absolute(path)
    digest = logical_hash(state)
    record = {"hash": digest, "arrays": _describe(state), "extra": json.loads(json.dumps(extra))}
    record["seal"] = _seal(record)
    hook, sys.unraisablehook = sys.unraisablehook, lambda _: None  # a failed save leaves coroutines that complain
    try:
        if jax.process_index() == 0 and is_url(path):
            _remove(path)  # Orbax would need the right to read the bucket's settings for it
        with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
            arrays = ocp.args.StandardSave(state)
            checkpointer.save(path, ocp.args.Composite(state=arrays, record=ocp.args.JsonSave(record)), force=True)
        if keep is not None and jax.process_index() == 0:
            kept = _steps(path.parent)[-keep:]
            for folder in path.parent.glob("step_*"):
                if folder not in kept:
                    _remove(folder)
    except Exception as error:
        raise CheckpointError(f"the checkpoint at {path} could not be written: {_reason(path, error)}") from error
    finally:
        sys.unraisablehook = hook
    return digest


def restore(path: epath.PathLike, abstract_state: Any) -> Restored:
    """Reads what `save` wrote into the shapes, dtypes and shardings of `abstract_state` and checks every byte.

    The mesh may differ from the one that saved. Raises CheckpointError where the folder is missing, unfinished or
    damaged, or holds other arrays than asked for; there is no falling back to another checkpoint.
    """
    path = _absolute(path)
    remedy = "restore another checkpoint (`latest` names the newest complete one) or start the stage again"
    if not path.is_dir():
        raise CheckpointError(f"no checkpoint at {path}: {remedy}")
    if not ocp.path.step.is_path_finalized(path):
        raise CheckpointError(f"the checkpoint at {path} was never finished: delete it, and {remedy}")
    try:
        record = _read(path, record=ocp.args.JsonRestore()).record
        seal = record.pop("seal")
    except Exception as error:
        raise CheckpointError(f"the checkpoint at {path} is damaged (its record is unreadable): {remedy}") from error
    if seal != _seal(record):
        raise CheckpointError(f"the checkpoint at {path} is damaged (its record was altered): {remedy}")
    _check_same_arrays(path, record["arrays"], _describe(abstract_state))
    try:
        state = _read(path, state=ocp.args.StandardRestore(abstract_state)).state
    except Exception as error:
        raise CheckpointError(f"the checkpoint at {path} is damaged (an array is unreadable): {remedy}") from error
    if logical_hash(state) != record["hash"]:
        raise CheckpointError(f"the checkpoint at {path} is damaged (an array was altered): {remedy}")
    return Restored(state, record["extra"], record["hash"])


def step_path(root: epath.PathLike, step: int) -> epath.Path:
    """The folder of the checkpoint after `step` updates: root/step_00000012."""
    return _absolute(root) / f"step_{step:08d}"


def latest(root: epath.PathLike) -> epath.Path | None:
    """The newest complete `step_path` folder in `root`; None where there is none. Every process must call it.

    Raises ProcessError where the processes do not see the same one.
    """
    names = [folder.name for folder in _steps(_absolute(root))]
    meet(f"the checkpoints in {root}", names)
    return _absolute(root) / names[-1] if names else None


def logical_hash(tree: Any) -> str:
    """SHA-256 (hex) over (key, shape, dtype, bytes) of all leaves in the order of their keys.

    Independent of sharding, mesh and file layout. Neither a device nor the host ever gets the whole of a large array;
    every process must call it.
    """
    digest = hashlib.sha256()
    for key, leaf in sorted(_keyed(tree), key=lambda item: item[0]):
        digest.update(f"{key}\0{leaf.shape or (1,)}\0{np.dtype(leaf.dtype)}\0".encode())
        for part in _slices(leaf):
            digest.update(part.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _slices(leaf: Any) -> Iterator[np.ndarray]:
    """An array on the host, cut along its leading axis."""
    if isinstance(leaf, jax.Array) and leaf.is_fully_replicated and not leaf.is_fully_addressable:
        leaf = leaf.addressable_data(0)
    if not isinstance(leaf, jax.Array) or (leaf.is_fully_addressable and leaf.nbytes <= SLICE_BYTES):
        yield np.ascontiguousarray(leaf)
        return
    sharding: Any = leaf.sharding  # over several processes always on a mesh
    everywhere = None if leaf.is_fully_addressable else NamedSharding(sharding.mesh, PartitionSpec())
    length = leaf.shape[0]
    rows = max(1, SLICE_BYTES * length // leaf.nbytes)
    for start in range(0, length, rows):
        part = _taker(min(rows, length - start), everywhere)(leaf, np.int32(start))
        yield np.ascontiguousarray(part if everywhere is None else part.addressable_data(0))


@functools.cache
def _taker(rows: int, sharding: NamedSharding | None) -> Callable[[jax.Array, np.int32], jax.Array]:
    def take(array: jax.Array, start: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice_in_dim(array, start, rows)

    return jax.jit(take, out_shardings=sharding)


def _keyed(tree: Any) -> list[tuple[str, Any]]:
    return [
        (jax.tree_util.keystr(path, simple=True, separator="/"), leaf) for path, leaf in jax.tree.leaves_with_path(tree)
    ]


def _describe(tree: Any) -> dict[str, str]:
    return {key: f"{np.dtype(leaf.dtype)}{list(leaf.shape)}" for key, leaf in _keyed(tree)}


def _seal(record: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _check_same_arrays(path: epath.Path, stored: dict[str, str], wanted: dict[str, str]) -> None:
    for key in sorted(stored.keys() | wanted.keys()):
        if stored.get(key) != wanted.get(key):
            raise CheckpointError(
                f"the checkpoint at {path} is of another model or optimiser: array {key} is "
                f"{stored.get(key, 'absent')} there and {wanted.get(key, 'absent')} here; use the configuration it "
                "was saved with"
            )


def _read(path: epath.Path, **args: Any) -> Any:
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        return checkpointer.restore(path, ocp.args.Composite(**args))


def _steps(root: epath.Path) -> list[epath.Path]:
    """Complete step folders, oldest first."""
    folders = [child for child in root.iterdir() if _STEP_NAME.fullmatch(child.name)] if root.is_dir() else []
    return sorted(folder for folder in folders if ocp.path.step.is_path_finalized(folder))


def _remove(folder: epath.Path) -> None:
    """On an object store a folder goes object by object: first the one that says it is complete."""
    if is_url(folder):
        (folder / COMMIT_FILE).unlink(missing_ok=True)
    folder.rmtree(missing_ok=True)


def _reason(path: epath.Path, error: Exception) -> str:
    if is_url(path):
        from looptool_jax.data import object_store

        return object_store.reason(str(path), error)
    reason = "no space left on the disk" if "No space left" in str(error) else str(error).partition("\n")[0]
    return f"{reason}; make room or choose another folder, and give the same command again"


def _absolute(path: epath.PathLike) -> epath.Path:
    if not is_url(path):
        return epath.Path(local_path(path)).absolute()
    from looptool_jax.data import object_store

    object_store.register_for_orbax()
    return epath.Path(path)
