"""What a run cost: seconds and tokens of every stage; not in the manifest, as they differ between runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from looptool_jax.data.store import Progress

NAME = "ledger.jsonl"
NO_SPEED: Mapping[str, float] = MappingProxyType({})


@dataclass(frozen=True)
class Cost:
    """Wall-clock seconds, generated tokens and tokens of prompts of a stage, in the process that finished it: what
    earlier processes did before they were killed is not counted."""

    seconds: float = 0.0
    tokens: int = 0
    prompt_tokens: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.seconds + other.seconds, self.tokens + other.tokens, self.prompt_tokens + other.prompt_tokens
        )  # fmt: skip


class Ledger:
    """Append-only record of the stages' costs in `ledger.jsonl`.

    A stage is recorded just before it enters the manifest; one killed between the two is recorded again, and the costs
    add up.
    """

    def __init__(self, path: str) -> None:
        self._progress = Progress(path)

    def record(
        self, stage: str, seconds: float, tokens: int, prompt_tokens: int = 0, speed: Mapping[str, float] = NO_SPEED
    ) -> None:
        """speed: what the stage says of its own, such as training's tokens a second by part of a step, and MFU."""
        row: dict[str, Any] = {"stage": stage, "seconds": round(seconds, 3), "tokens": tokens}
        row["prompt_tokens"] = prompt_tokens
        self._progress.append(row | ({"speed": dict(speed)} if speed else {}))

    def costs(self) -> dict[str, Cost]:
        """Cost by stage, in the order in which stages ended."""
        costs: dict[str, Cost] = {}
        for row in self._progress.rows():
            cost = Cost(row["seconds"], row["tokens"], row.get("prompt_tokens", 0))
            costs[row["stage"]] = costs.get(row["stage"], Cost()) + cost
        return costs
