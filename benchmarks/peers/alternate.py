"""Arms in alternation (A B C, A B C, ...), each time in a process of its own; what a benchmark prints of them."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Arm:
    """environment: a folder under --peers; empty: the environment of this process."""

    name: str
    script: str
    variant: str
    environment: str = ""

    def python(self, peers: Path | None) -> str | None:
        if not self.environment:
            return sys.executable
        found = None if peers is None else peers.absolute() / self.environment / "bin/python"
        return str(found) if found is not None and found.exists() else None


def alternate(
    arms: list[Arm], folder: Path, peers: Path | None, rounds: int, repeats: int
) -> dict[str, list[dict[str, Any]]]:
    """What each arm reported, one entry a round. An arm that fails is named with the end of what it said."""
    for arm in arms:
        if arm.python(peers) is None:
            print(f"left out: {arm.name} (no environment {arm.environment!r} in --peers)")
    arms = [arm for arm in arms if arm.python(peers) is not None]
    runs: dict[str, list[dict[str, Any]]] = {arm.name: [] for arm in arms}
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": "", "TOKENIZERS_PARALLELISM": "false"}
    for number in range(rounds):
        for arm in arms:
            if arm.name not in runs:
                continue
            command = [arm.python(peers), str(HERE / arm.script), str(folder), arm.variant, str(repeats)]
            done = subprocess.run(command, env=environment, capture_output=True, text=True)
            if done.returncode:
                print(f"failed: {arm.name}\n{done.stderr[-2000:]}")
                del runs[arm.name]
                continue
            runs[arm.name].append(json.loads(done.stdout.splitlines()[-1]))
            print(f"round {number + 1}: {arm.name} {runs[arm.name][-1]['seconds']} s", file=sys.stderr, flush=True)
    return runs


def seconds(runs: list[dict[str, Any]]) -> list[float]:
    """The times of all rounds."""
    return [second for run in runs for second in run["seconds"]]


def timing(runs: list[dict[str, Any]]) -> tuple[float, str]:
    """The median, and the cell of a table: the median and the range."""
    times = seconds(runs)
    return statistics.median(times), f"{statistics.median(times):.2f} ({min(times):.2f} to {max(times):.2f})"


def memory(runs: list[dict[str, Any]]) -> tuple[float, float]:
    """GB: the peak of the resident set while measured, and how much of it was not there before; medians."""
    peaks = [run["peak_bytes"] / 1e9 for run in runs]
    beyond = [(run["peak_bytes"] - run["before_bytes"]) / 1e9 for run in runs]
    return statistics.median(peaks), statistics.median(beyond)


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
