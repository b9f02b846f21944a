"""A policy of a run, or any model the program reads, as a Hugging Face folder of its own."""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import dataclass

import jax.numpy as jnp

from looptool_jax.data.store import join
from looptool_jax.loop.manifest import NAME as MANIFEST
from looptool_jax.loop.manifest import Manifest, policy_folder
from looptool_jax.loop.pool import locate, locate_base
from looptool_jax.models import hf, lora, storage
from looptool_jax.models.config import DecoderConfig, ModelError
from looptool_jax.models.decoder import Params

MARK = "export.json"
"""Beside the weights: what the folder is an export of."""

DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Origin:
    """name: for people, and to know an export again. path: of the weights."""

    name: str
    path: str


def policy_of_run(run_dir: str, round_: int | None = None) -> Origin:
    """The policy after a round of a run; round 0 is the warm-up, None the last round that is trained.

    Raises ModelError where there is no run or no such round yet.
    """
    if MANIFEST not in storage.list_files(run_dir):
        raise ModelError(f"{run_dir}: no run with a finished stage is here ({MANIFEST} is missing)")
    manifest, trained = Manifest(run_dir), 0
    while manifest.done(f"round-{trained + 1}/train"):
        trained += 1
    asked = trained if round_ is None else round_
    if asked == 0 and manifest.done("warmup"):
        return Origin(f"the warmed-up policy of {_named(run_dir)}", join(run_dir, "warmup/policy"))
    if round_ is not None and round_ < 1:
        what = "and this run has no finished one" if round_ == 0 else "the rounds after it are counted from 1"
        raise ModelError(
            f"{run_dir}: there is no policy of round {round_}: round 0 is the warm-up, {what} (rounds trained so far: "
            f"{trained}); choose another --round"
        )
    if not 1 <= asked <= trained:
        raise ModelError(
            f"{run_dir}: round {max(1, asked)} has no policy yet (rounds trained so far: {trained}); continue the "
            "run, or choose another --round"
        )
    return Origin(f"round {asked} of {_named(run_dir)}", join(run_dir, policy_folder(asked)))


def model_of_path(path: str) -> Origin:
    """Any model that a configuration can name. Raises ModelError."""
    return Origin(_named(path), locate(path))


def export(origin: Origin, out: str, dtype: str | None = None) -> None:
    """Writes the folder `out` (local, or in an object store), in the dtype of the weights unless another is given.
    Adapters are merged into the weights of their base.

    Raises:
        ModelError: `out` holds another model; the weights cannot be read; there is no such dtype.
    """
    if dtype not in (None, *DTYPES):
        raise ModelError(f"dtype {dtype!r} is not supported; use one of {', '.join(DTYPES)}")
    _check_free(out, origin)
    adapters = origin.path if lora.is_adapter(origin.path) else None
    base = locate_base(origin.path)
    cfg = DecoderConfig.from_pretrained(base)
    params = read_params(base, cfg, dtype)
    if adapters:
        params = lora.merge(params, *lora.load_adapters(adapters, cfg))
    with storage.write_whole(join(out, MARK)) as file:
        file.write(json.dumps({"origin": origin.name}).encode() + b"\n")
    hf.save_pretrained(params, cfg, out, base)


def read_params(path: str, cfg: DecoderConfig, dtype: str | None) -> Params:
    """The weights to write, whole on the default device: the command makes that the CPU."""
    return hf.load_params(path, cfg, jnp.dtype(dtype or hf.stored_dtype(path, cfg)))


def _check_free(out: str, origin: Origin) -> None:
    """Raises ModelError where the folder holds a model that is no earlier export of the same."""
    there = storage.list_files(out)
    what = "another model"
    if MARK in there:
        with contextlib.suppress(KeyError, TypeError, json.JSONDecodeError, UnicodeDecodeError):
            what = str(json.loads(storage.read_bytes(join(out, MARK), there[MARK]))["origin"])
    elif not any(name == "config.json" or name.endswith(".safetensors") for name in there):
        return
    if what != origin.name:
        raise ModelError(f"{out}: holds {what}; choose another --out, or remove the folder")


def _named(path: str) -> str:
    """A local path in full: a relative one means another place elsewhere."""
    return os.path.abspath(path) if os.path.exists(path) else path
