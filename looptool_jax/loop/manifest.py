"""The manifest of a run: which stages are done, what they read and wrote (by hash), and their metrics.

It holds nothing that differs between an undisturbed run and one that was killed and resumed. What several rooms read
of a round has its place named here.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from looptool_jax.data.store import DataError, exists, file_sha256, join, list_tree, read_text, write_text

NAME = "manifest.json"


class Manifest:
    """Done stages of the run in `run_dir`, in order. Paths inside are relative to it."""

    def __init__(self, run_dir: str) -> None:
        """Read the manifest of a run, or start an empty one. Raises DataError where it cannot be read."""
        self.run_dir = run_dir
        self.path = join(run_dir, NAME)
        self.stages: dict[str, dict[str, Any]] = {}
        if exists(self.path):
            try:
                self.stages = json.loads(read_text(self.path))["stages"]
            except (ValueError, KeyError, TypeError):
                raise DataError(f"{self.path}: not a manifest; restore it, or choose another run directory") from None

    def done(self, stage: str) -> bool:
        return stage in self.stages

    def metrics(self, stage: str) -> dict[str, Any]:
        return self.stages[stage]["metrics"]

    def commit(self, stage: str, inputs: Sequence[str], outputs: Sequence[str], metrics: dict[str, Any]) -> None:
        """Enter a finished stage. Its outputs (files, or directories of files) must be on disk, whole."""
        self.stages[stage] = {
            "inputs": self._hashes(inputs),
            "outputs": self._hashes(outputs),
            "metrics": metrics,
        }
        self.save()

    def save(self) -> None:
        write_text(self.path, json.dumps({"stages": self.stages}, indent=1) + "\n")

    def check(self) -> None:
        """Raises DataError where an artifact of a done stage is gone or was changed since."""
        recorded: dict[str, tuple[str, str]] = {}
        for stage, entry in self.stages.items():
            recorded |= {file: (digest, stage) for file, digest in entry["outputs"].items()}
        for file, (digest, stage) in recorded.items():
            path = join(self.run_dir, file)
            if not exists(path):
                raise DataError(f"{path}: written by stage {stage}, but it is gone; restore it or start a new run")
            if file_sha256(path) != digest:
                raise DataError(f"{path}: changed since stage {stage} wrote it; restore it or start a new run")

    def _hashes(self, paths: Sequence[str]) -> dict[str, str]:
        return {file: file_sha256(join(self.run_dir, file)) for path in paths for file in self._files(path)}

    def _files(self, path: str) -> list[str]:
        """The path itself, or what lies below it."""
        return [join(path, name) for name in list_tree(join(self.run_dir, path))] or [path]


def data_file(round_: int) -> str:
    """D_j, relative to the run directory."""
    return f"round-{round_}/data.jsonl"


def eval_folder(round_: int) -> str:
    """The evaluation after round `round_` (0: before the first), relative to the run directory."""
    return f"round-{round_}/eval" if round_ else "eval-0"


def policy_folder(round_: int) -> str:
    """The weights that round `round_` trained, relative to the run directory."""
    return f"round-{round_}/train/policy"
