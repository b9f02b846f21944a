"""What a run shows for itself: accuracy round by round, label repair, cost, read from its directory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from looptool_jax.data.store import join
from looptool_jax.loop.ledger import NAME as LEDGER
from looptool_jax.loop.ledger import Ledger
from looptool_jax.loop.manifest import Manifest
from looptool_jax.report.tables import rounds_of, verdicts


@dataclass(frozen=True)
class Figures:
    """A run as it stands. held_out: metrics of the evaluations by round, 0 before training. items: SHA-256 of the
    file of held-out items, None where there is none."""

    run_dir: str
    items: str | None
    held_out: dict[int, dict[str, Any]]
    reward: float | None
    repair: dict[str, float | None]
    seconds: float
    tokens: int

    @property
    def last(self) -> int:
        """The last round that was evaluated; 0 where none was."""
        return max(self.held_out, default=0)

    def accuracy(self, round_: int) -> float | None:
        return self.held_out[round_]["accuracy"] if round_ in self.held_out else None

    def gain(self, round_: int | None = None) -> float | None:
        """Held-out accuracy after a round (the last one) beyond that before training."""
        before, after = self.accuracy(0), self.accuracy(self.last if round_ is None else round_)
        return None if before is None or after is None or not self.last else after - before

    def metric(self, name: str) -> float | None:
        """A number that a search goes by: accuracy, gain or reward, of the last round."""
        return {"accuracy": self.accuracy(self.last), "gain": self.gain(), "reward": self.reward}[name]

    def verdicts(self, round_: int) -> dict[str, bool]:
        """Whether each held-out item was answered rightly after a round, by the item's id."""
        return verdicts(self.run_dir, round_)


def read_figures(run_dir: str) -> Figures:
    """Figures of a run, finished or not; of none where the directory holds no run yet. Raises DataError."""
    entries = Manifest(run_dir).stages
    stages = {name: entry["metrics"] for name, entry in entries.items()}
    items = entries["eval-0"]["inputs"].get("seed/heldout.jsonl") if "eval-0" in entries else None
    before = {0: stages["eval-0"]} if "eval-0" in stages else {}
    trained, scored = dict(rounds_of(stages, "train")), dict(rounds_of(stages, "score"))
    repair: dict[str, float | None] = {}
    if scored:
        last = scored[max(scored)]
        repair = {key: last["label_repair"][key] for key in ("precision", "recall", "repaired", "harm")}
        repair |= {"noise_before": last["noise_before"]["share"], "noise_after": last["noise_after"]["share"]}
    costs = Ledger(join(run_dir, LEDGER)).costs().values()
    return Figures(
        run_dir,
        items,
        before | dict(rounds_of(stages, "eval")),
        trained[max(trained)]["reward_last"] if trained else None,
        repair,
        math.fsum(cost.seconds for cost in costs),
        sum(cost.tokens for cost in costs),
    )


def mean(values: Sequence[float | None]) -> float | None:
    """None where a value is missing."""
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known and len(known) == len(values) else None
