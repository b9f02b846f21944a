"""In which order trials run, and which of them are stopped behind a round.

A stopped trial has run with fewer rounds (`rounds` of a run can grow), so it is a whole run and could go on.
"""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from looptool_jax.data.store import Progress
from looptool_jax.sweep.figures import Figures, mean
from looptool_jax.sweep.space import Trial

LEAST_OTHERS = 3  # to be held against

ReadFigures = Callable[[Trial], Figures]


@dataclass(frozen=True)
class Task:
    """A trial to run up to the end of a round; None: to its end."""

    trial: Trial
    rounds: int | None = None


class Order(Protocol):
    """Which trial is next. total: of tasks, at most. stopped: groups stopped early, and behind which round."""

    total: int
    stopped: dict[str, int]

    def take(self) -> Task | None:
        """The next task; None where there is none as long as those on their way have not ended."""

    def ended(self, task: Task, ok: bool) -> None:
        """A task that was taken has ended, as it should or not."""


class GridOrder:
    """All trials once, in their order. With `prune`, round by round: all trials to the end of a round, then groups
    below the median of the others stop."""

    def __init__(self, trials: Sequence[Trial], rounds: int, prune: bool, figures: ReadFigures, stops: str) -> None:
        """stops: the file that remembers who was stopped."""
        self._trials, self._figures = list(trials), figures
        self._rungs = deque(range(1, rounds + 1) if prune else [None])
        self.total = len(self._trials) * len(self._rungs)
        self._queue: deque[Task] = deque()
        self._open = 0
        self._failed: set[str] = set()
        self._stops = Progress(stops) if prune else None
        self.stopped = {row["group"]: row["round"] for row in self._stops.rows()} if self._stops else {}

    def take(self) -> Task | None:
        while not self._queue and not self._open and self._rungs:
            rung = self._rungs.popleft()
            if rung is not None and rung > 1:
                self._prune(rung - 1)
            out = {*self.stopped, *self._failed}
            self._queue.extend(Task(trial, rung) for trial in self._trials if trial.group not in out)
        if not self._queue:
            return None
        self._open += 1
        return self._queue.popleft()

    def ended(self, task: Task, ok: bool) -> None:
        self._open -= 1
        if not ok and task.rounds is not None:
            self._failed.add(task.trial.group)

    def _prune(self, round_: int) -> None:
        """Whoever has gone beyond the round stays, so that values added later stop nobody who has finished."""
        assert self._stops is not None
        groups: dict[str, list[Figures]] = {}
        for trial in self._trials:
            groups.setdefault(trial.group, []).append(self._figures(trial))
        reached = {group: mean([run.accuracy(round_) for run in runs]) for group, runs in groups.items()}
        for group, accuracy in reached.items():
            others = [value for other, value in reached.items() if other != group and value is not None]
            beyond = any(run.last > round_ for run in groups[group])
            if group not in self.stopped and not beyond and accuracy is not None and hopeless(accuracy, others):
                self._stops.append({"group": group, "round": round_, "accuracy": accuracy, "others": len(others)})
                self.stopped[group] = round_


def hopeless(accuracy: float, others: Sequence[float]) -> bool:
    """The median rule: below the median of the others at the same round, where there are enough of them."""
    return len(others) >= LEAST_OTHERS and accuracy < statistics.median(others)
