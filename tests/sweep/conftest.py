"""A sweep's folder in which trials are played: `stub.py` runs in place of `looptool run`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from looptool_jax.loop.console import Console
from looptool_jax.sweep import trials
from looptool_jax.sweep.run import run_sweep
from looptool_jax.sweep.space import read_sweep
from looptool_jax.sweep.trials import Trials

STUB = str(Path(__file__).with_name("stub.py"))
Played = Callable[..., Trials]


@pytest.fixture
def plan(tmp_path, monkeypatch) -> Callable[[dict], None]:
    """Says what the trials do, by a part of their names. Played runs keep no settings to be held against."""
    monkeypatch.setattr(trials, "PROGRAM", (sys.executable, "-S", STUB))
    monkeypatch.setattr(trials, "check_kept", lambda cfg: None)
    monkeypatch.chdir(tmp_path)

    def write(content: dict) -> None:
        Path("plan.json").write_text(json.dumps(content))

    write({})
    return write


@pytest.fixture
def played(plan) -> Played:
    """Runs a sweep of micro in the folder `sweep` of the working directory."""

    def run(
        *arguments: str, out: str = "sweep", parallel: int = 2, shard: tuple[int, int] = (1, 1), **options: object
    ) -> Trials:
        sweep = read_sweep(None, "micro", arguments, **options)
        return run_sweep(sweep, out, Console(), parallel, shard)

    return run


def starts() -> list[str]:
    """The trials that were started, in order, with their rounds."""
    return Path("starts.txt").read_text().splitlines() if Path("starts.txt").exists() else []
