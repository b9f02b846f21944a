"""Searches: what is asked and told, and that a search which was cut off asks on as if undisturbed."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from looptool_jax.data.store import DataError, read_jsonl
from looptool_jax.sweep.figures import Figures
from looptool_jax.sweep.order import GridOrder, Task
from looptool_jax.sweep.search import SearchOrder
from looptool_jax.sweep.space import Trial, read_sweep
from looptool_jax.sweep.values import SweepError

pytest.importorskip("optuna")
SPACE = ["train.optimizer.learning_rate=loguniform(1e-6,1e-2)", "compose.high_ppl=choice(top,random)"]


class Runs:
    """Trials of two rounds with an accuracy that their settings give, best at a learning rate of 1e-4 with `top`."""

    def __init__(self) -> None:
        self.rounds: dict[str, int] = {}
        self.settings: list[dict[str, str]] = []

    def run(self, task: Task) -> None:
        self.rounds[task.trial.name] = task.rounds or 2
        self.settings.append(task.trial.settings)

    def figures(self, trial: Trial) -> Figures:
        off = abs(math.log10(float(trial.settings["train.optimizer.learning_rate"])) + 4)
        accuracy = max(0.0, 0.9 - 0.2 * off - 0.1 * (trial.settings["compose.high_ppl"] == "random"))
        held_out = {round_: {"accuracy": accuracy * round_ / 2} for round_ in range(self.rounds.get(trial.name, 0) + 1)}
        return Figures("", None, held_out, None, {}, 0.0, 0)


def search(path: Path, runs: Runs, stop_after: int | None = None, fail: int | None = None, **options) -> SearchOrder:
    sweep = read_sweep(None, "micro", [*SPACE, "seed=range(2)"], **options)
    order = SearchOrder(sweep, 2, str(path / "search.jsonl"), runs.figures)
    count = 0
    while count != stop_after and (task := order.take()):
        count += 1
        if count != fail:
            runs.run(task)
        order.ended(task, count != fail)
    return order


@pytest.mark.parametrize("method", ["tpe", "random"])
@pytest.mark.parametrize("stop_after", [1, 5, 6])
def test_a_search_that_was_cut_off_asks_on_as_if_undisturbed(tmp_path, method, stop_after):
    (tmp_path / "whole").mkdir(), (tmp_path / "cut").mkdir()
    whole = search(tmp_path / "whole", Runs(), method=method, trials=12)
    runs = Runs()
    search(tmp_path / "cut", runs, stop_after=stop_after, method=method, trials=12)
    cut = search(tmp_path / "cut", runs, method=method, trials=12)
    assert [point.values for point in whole.points] == [point.values for point in cut.points]
    assert len(whole.points) == 12 and len({str(point.values) for point in whole.points}) > 10
    rows = list(read_jsonl(tmp_path / "whole/search.jsonl"))
    assert rows == list(read_jsonl(tmp_path / "cut/search.jsonl"))
    best = max(point.told["value"] for point in whole.points)
    assert best == max(runs.figures(trial).accuracy(2) for trial in whole.trials)


def test_tpe_finds_more_than_random_draws(tmp_path):
    found = {}
    for method in ("tpe", "random"):
        values = []
        for seed in range(5):
            folder = tmp_path / f"{method}-{seed}"
            folder.mkdir()
            sweep = read_sweep(None, "micro", SPACE, method=method, trials=30, seed=seed)
            runs = Runs()
            order = SearchOrder(sweep, 2, str(folder / "search.jsonl"), runs.figures)
            while task := order.take():
                runs.run(task)
                order.ended(task, True)
            values += [point.told["value"] for point in order.points[15:]]
        found[method] = sum(values) / len(values)
    assert found["tpe"] > found["random"] + 0.05


def test_a_failed_point_has_no_value_and_is_tried_again(tmp_path):
    runs = Runs()
    order = search(tmp_path, runs, fail=3, trials=4)
    assert [bool(point.told) for point in order.points] == [True, False, True, True]
    again = search(tmp_path, runs, trials=4)
    assert all(point.told for point in again.points)
    assert [point.values for point in again.points] == [point.values for point in order.points]


def test_hopeless_points_stop_behind_a_round(tmp_path):
    runs = Runs()
    order = search(tmp_path, runs, trials=12, prune=True)
    stopped = [point for point in order.points if "stopped" in point.told]
    assert stopped and not any(point.number < 3 for point in stopped)
    for point in order.points:
        rounds = {runs.rounds[trial.name] for trial in point.trials}
        assert rounds == ({1} if point in stopped else {2})
        here = runs.figures(point.trials[0]).accuracy(1)
        before = sorted(runs.figures(other.trials[0]).accuracy(1) for other in order.points[: point.number])
        if point.number >= 3:
            middle = (before[(len(before) - 1) // 2] + before[len(before) // 2]) / 2
            assert (point in stopped) == (here < middle)
    again = search(tmp_path, runs, trials=12, prune=True)
    assert again.stopped == order.stopped and len(again.stopped) == len(stopped)


@pytest.mark.parametrize(
    "row",
    [
        '{"point": 3, "value": 1}',
        '{"point": 0}',
        '{"point": 0, "values": {"train.batch": "4"}}',
        '{"point": 0, "values": {"train.optimizer.learning_rate": "1", "compose.high_ppl": "top"}}',
        '{"point": 0, "values": {"train.optimizer.learning_rate": "0.001", "compose.high_ppl": "best"}}',
        '{"point": 0, "values": {"train.optimizer.learning_rate": {}, "compose.high_ppl": "top"}}',
        '{"point": 0, "values": [1]}',
    ],
)
def test_a_file_of_another_search_is_refused(tmp_path, row):
    (tmp_path / "search.jsonl").write_text(f"{row}\n")
    with pytest.raises(DataError, match=r"search\.jsonl: not the points of this search"):
        search(tmp_path, Runs(), trials=2)


def test_without_optuna_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)
    with pytest.raises(SweepError, match=r"pip install 'looptool-jax\[sweep\]'"):
        search(tmp_path, Runs(), trials=2)


def test_a_grid_is_not_pruned_by_few_or_by_later_values(tmp_path):
    """Three groups have too few others; a group that has finished stays when better ones come."""
    runs = Runs()

    def grid(*rates: str) -> GridOrder:
        sweep = read_sweep(None, "micro", [f"train.optimizer.learning_rate={','.join(rates)}", "compose.high_ppl=top"])
        order = GridOrder(sweep.trials(), 2, True, runs.figures, str(tmp_path / "stopped.jsonl"))
        while task := order.take():
            runs.run(task) if runs.rounds.get(task.trial.name, 0) < task.rounds else None
            order.ended(task, True)
        return order

    assert not grid("1e-6", "1e-5", "1e-4").stopped
    later = grid("1e-6", "1e-5", "1e-4", "2e-4", "2e-6")
    assert list(later.stopped) == ["learning_rate=2e-06"]
    assert runs.rounds["learning_rate=1e-06"] == 2
