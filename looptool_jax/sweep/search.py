"""Random and TPE search by Optuna: points asked one by one, each run over the sweep's seeds, and told its value.

What was asked and told stands in `search.jsonl` of the sweep's folder. The study is built anew from it for every
question, and the sampler is keyed by the point's number, so a search that was killed asks on as if undisturbed.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from looptool_jax.data.store import DataError, Progress
from looptool_jax.sweep.figures import mean
from looptool_jax.sweep.order import ReadFigures, Task, hopeless
from looptool_jax.sweep.space import Sweep, Trial
from looptool_jax.sweep.values import Distribution, SweepError, canonical

FILE = "search.jsonl"


@dataclass
class Point:
    """A point that is asked for. rung: the round up to which its trials run now; None: to the end."""

    number: int
    values: dict[str, str]
    trials: list[Trial]
    rung: int | None = None
    open: int = 0
    failed: bool = False
    told: dict[str, Any] = field(default_factory=dict)


class SearchOrder:
    """The points of a search, one behind the other."""

    def __init__(self, sweep: Sweep, rounds: int, path: str, figures: ReadFigures) -> None:
        """rounds: of a run. Raises SweepError without Optuna, DataError where `path` cannot be read."""
        assert sweep.search is not None
        self._sweep, self._search, self._figures = sweep, sweep.search, figures
        self._space = {key: _distribution(_optuna(), found) for key, found in sweep.search.space.items()}
        self._rungs: Sequence[int | None] = range(1, rounds + 1) if sweep.prune else [None]
        self.total = self._search.trials * max(1, len(sweep.seeds)) * len(self._rungs)
        self._log = Progress(path)
        self._queue: deque[tuple[Task, Point]] = deque()
        self._running: dict[Task, Point] = {}
        self.points: list[Point] = []
        self.stopped: dict[str, int] = {}
        for row in self._log.rows():
            self._read(row, path)
        self._again = deque(point for point in self.points if not point.told)

    @property
    def trials(self) -> list[Trial]:
        """The trials of all points so far; points that are alike share theirs."""
        return list({trial.name: trial for point in self.points for trial in point.trials}.values())

    @property
    def best(self) -> Point | None:
        """The point of the largest value, of those that ran to their end; None as long as there is none."""
        ended = [point for point in self.points if point.told and "stopped" not in point.told]
        return max(ended, key=lambda point: point.told["value"], default=None)

    def take(self) -> Task | None:
        if not self._queue and (point := self._next()):
            self._begin(point, self._rungs[0])
        for task, point in self._queue:
            if task not in self._running:  # a point may be asked for twice
                self._queue.remove((task, point))
                self._running[task] = point
                return task
        return None

    def ended(self, task: Task, ok: bool) -> None:
        point = self._running.pop(task)
        point.open -= 1
        point.failed |= not ok
        if point.open or point.failed:  # one that failed has no value, and is tried again by the next command
            return
        place = self._rungs.index(point.rung)
        last = place == len(self._rungs) - 1
        if last or self._is_hopeless(point):
            self._tell(point, pruned=not last)
        else:
            self._begin(point, self._rungs[place + 1])

    def _next(self) -> Point | None:
        """A point of an earlier command that has no value yet, or a new one."""
        if self._again:
            return self._again.popleft()
        if len(self.points) >= self._search.trials:
            return None
        values = self._ask(len(self.points))
        self._log.append({"point": len(self.points), "values": values})
        self.points.append(self._point(values))
        return self.points[-1]

    def _begin(self, point: Point, rung: int | None) -> None:
        point.rung, point.open = rung, len(point.trials)
        self._queue.extend((Task(trial, rung), point) for trial in point.trials)

    def _point(self, values: dict[str, str]) -> Point:
        return Point(len(self.points), values, self._sweep.group("", values, values))

    def _is_hopeless(self, point: Point) -> bool:
        """Points before this one that have come as far are the others."""
        assert point.rung is not None
        here = self._accuracy(point, point.rung)
        others = [self._accuracy(other, point.rung) for other in self.points[: point.number] if other.told]
        return here is not None and hopeless(here, [value for value in others if value is not None])

    def _accuracy(self, point: Point, round_: int) -> float | None:
        return mean([self._figures(trial).accuracy(round_) for trial in point.trials])

    def _tell(self, point: Point, pruned: bool) -> None:
        value = mean([self._figures(trial).metric(self._search.metric) for trial in point.trials])
        if value is None:
            raise DataError(f"{point.trials[0].name}: the run has no {self._search.metric}; search by another metric")
        row = {"point": point.number, "value": value} | ({"stopped": point.rung} if pruned else {})
        self._log.append(row)
        self._told(point, row)

    def _told(self, point: Point, row: dict[str, Any]) -> None:
        point.told = row
        if "stopped" in row:
            self.stopped[point.trials[0].group] = row["stopped"]

    def _read(self, row: dict[str, Any], path: str) -> None:
        try:
            number = row["point"]
            if "values" in row and number == len(self.points):
                self.points.append(self._point(row["values"]))
                self._frozen(self.points[-1])
            else:
                float(row["value"])
                self._told(self.points[number], row)
        except (KeyError, TypeError, ValueError, IndexError, AttributeError):
            raise DataError(
                f"{path}: not the points of this search; restore the file, or choose another --out"
            ) from None

    def _ask(self, number: int) -> dict[str, str]:
        """Values of a new point, drawn with regard to all that is known, and to what is still running."""
        optuna = _optuna()
        digest = hashlib.sha256(f"{self._search.seed}/{number}".encode()).digest()
        seed = int.from_bytes(digest[:4], "little")
        sampler = (
            optuna.samplers.RandomSampler(seed=seed)
            if self._search.method == "random"
            else optuna.samplers.TPESampler(seed=seed, multivariate=True, constant_liar=True)
        )
        study = optuna.create_study(direction="maximize", sampler=sampler)
        for point in self.points:
            study.add_trial(self._frozen(point))
        asked = study.ask(self._space).params
        return {key: _as_text(self._search.space[key], value) for key, value in asked.items()}

    def _frozen(self, point: Point) -> Any:
        """A point as Optuna knows it. Raises ValueError, KeyError for one that is not of this space."""
        states, trial = _optuna().trial.TrialState, _optuna().trial
        state, value, steps = states.RUNNING, None, {}
        if point.told:
            state, value = states.COMPLETE, point.told["value"]
        if "stopped" in point.told:
            state, value, steps = states.PRUNED, None, {point.told["stopped"]: value}
        params = {key: _of_text(self._search.space[key], text) for key, text in point.values.items()}
        return trial.create_trial(
            state=state, value=value, params=params, distributions=self._space, intermediate_values=steps
        )


def _optuna() -> Any:
    try:
        import optuna
    except ImportError:
        raise SweepError("a search needs Optuna: pip install 'looptool-jax[sweep]'") from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


def _distribution(optuna: Any, found: Distribution) -> Any:
    if found.kind == "choice":
        return optuna.distributions.CategoricalDistribution(found.arguments)
    low, high = found.bounds
    if found.kind == "int":
        return optuna.distributions.IntDistribution(int(low), int(high))
    return optuna.distributions.FloatDistribution(low, high, log=found.kind == "loguniform")


def _as_text(found: Distribution, value: Any) -> str:
    """Real numbers with four digits: more say nothing, and would stand in the names of folders."""
    if found.kind not in ("uniform", "loguniform"):
        return str(value)
    low, high = found.bounds
    return canonical(repr(min(high, max(low, float(f"{value:.4g}")))))


def _of_text(found: Distribution, text: str) -> Any:
    return {"choice": str, "int": int}.get(found.kind, float)(text)
