"""What a run cost: seconds and generated tokens of every stage; not in the manifest, as they differ between runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from looptool_jax.data.store import Progress

NO_SPEED: Mapping[str, float] = MappingProxyType({})


@dataclass(frozen=True)
class Cost:
    """Wall-clock seconds and generated tokens of a stage, in the process that finished it: what earlier processes
    did before they were killed is not counted."""

    seconds: float
    tokens: int


class Ledger:
    """Append-only record of the stages' costs in `ledger.jsonl`.

    A stage is recorded just before it enters the manifest; one killed between the two is recorded again, and the costs
    add up.
    """

    def __init__(self, path: str) -> None:
        self._progress = Progress(path)

    def record(self, stage: str, seconds: float, tokens: int, speed: Mapping[str, float] = NO_SPEED) -> None:
        """speed: what the stage says of its own, such as training's tokens a second by part of a step, and MFU."""
        row: dict[str, Any] = {"stage": stage, "seconds": round(seconds, 3), "tokens": tokens}
        self._progress.append(row | ({"speed": dict(speed)} if speed else {}))

    def costs(self) -> dict[str, Cost]:
        """Cost by stage, in the order in which stages ended."""
        costs: dict[str, Cost] = {}
        for row in self._progress.rows():
            old = costs.get(row["stage"], Cost(0.0, 0))
            costs[row["stage"]] = Cost(old.seconds + row["seconds"], old.tokens + row["tokens"])
        return costs
