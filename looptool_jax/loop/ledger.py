"""What a run cost: seconds and tokens of every stage; not in the manifest, as they differ between runs."""

from __future__ import annotations

from dataclasses import dataclass

from looptool_jax.data.store import Progress


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

    def record(self, stage: str, seconds: float, tokens: int, prompt_tokens: int = 0) -> None:
        self._progress.append(
            {"stage": stage, "seconds": round(seconds, 3), "tokens": tokens, "prompt_tokens": prompt_tokens}
        )

    def costs(self) -> dict[str, Cost]:
        """Cost by stage, in the order in which stages ended."""
        costs: dict[str, Cost] = {}
        for row in self._progress.rows():
            cost = Cost(row["seconds"], row["tokens"], row.get("prompt_tokens", 0))
            costs[row["stage"]] = costs.get(row["stage"], Cost()) + cost
        return costs
