"""Runs side by side: what differs in settings, held-out accuracy, cost, and which differences are more than chance.

Runs that differ by seed alone are a group. Two things make a difference uncertain, and each has a test of its own: the
seeds (another seed trains another policy: a t-test over seeds) and the held-out items (a bootstrap and a test of signs
over shared items).
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from jaxtyping import Float

from looptool_jax.config import RESUMABLE, kept_settings
from looptool_jax.data.store import DataError, exists, join, list_names, write_text
from looptool_jax.evaluation import statistics
from looptool_jax.evaluation.statistics import Estimate, mean_over_seeds
from looptool_jax.loop.manifest import NAME as MANIFEST
from looptool_jax.report import charts
from looptool_jax.report.page import Section, page, table, text
from looptool_jax.report.tables import Table, markdown_text, percent
from looptool_jax.sweep.figures import Figures, read_figures
from looptool_jax.sweep.space import KEPT, SEED, kept_sweep
from looptool_jax.sweep.summary import shown_interval, shown_mean
from looptool_jax.sweep.values import SweepError

LEVEL = 0.05
MOST_NAMED = 8
APART = (
    "run_dir",
    SEED,
    *(key for key in RESUMABLE if key != "rounds"),
)  # settings in which runs of a group may differ


@dataclass(frozen=True)
class Run:
    """A run directory: its name, figures, seed and all other settings."""

    name: str
    figures: Figures
    seed: int
    settings: dict[str, Any]


@dataclass(frozen=True)
class Group:
    """Runs that differ by seed alone."""

    name: str
    runs: list[Run]

    @property
    def last(self) -> int:
        """The last round that all have been evaluated after."""
        return min(run.figures.last for run in self.runs)

    @property
    def gain(self) -> Estimate:
        return mean_over_seeds([_gain(run, self.last) for run in self.runs])


@dataclass(frozen=True)
class Difference:
    """A group beside the reference, after the last round that both have.

    paired: whether runs were paired by seed. seeds: difference of gains over seeds, None from a run each; permuted: p
    of the permutation test beside it. items: difference in accuracy over the held-out items, None where those are
    not the same. p_seeds, p_items: corrected for the number of groups (Holm).
    """

    group: Group
    reference: Group
    round: int
    paired: bool
    seeds: Estimate | None
    permuted: float | None
    items: Estimate | None
    p_seeds: float | None = None
    p_items: float | None = None


@dataclass(frozen=True)
class Comparison:
    groups: list[Group]
    differences: list[Difference]
    tables: list[Table] = field(default_factory=list)
    conclusions: list[str] = field(default_factory=list)

    def write(self, out: str) -> None:
        """comparison.html, comparison.md and comparison.csv in the folder `out`."""
        names = ", ".join(group.name for group in self.groups)
        said = "".join(f"<p>{text(line)}</p>" for line in self.conclusions)
        sections = [Section("conclusions", "What can be concluded", said + _chart(self.groups))]
        sections.append(Section("tables", "Tables", "".join(map(table, self.tables))))
        write_text(join(out, "comparison.html"), page("Runs compared", names, sections))
        lines = "\n".join(f"- {markdown_text(line)}" for line in self.conclusions)
        tables = "\n\n".join(one.markdown() for one in self.tables)
        write_text(join(out, "comparison.md"), f"# Runs compared\n\n{lines}\n\n{tables}\n")
        write_text(join(out, "comparison.csv"), _csv(self.differences))


def compare_runs(paths: Sequence[str]) -> Comparison:
    """Compare run directories, and the trials of sweeps' folders; the first group is the reference.

    Raises SweepError where there is nothing to compare; DataError, ConfigError for what is no run.
    """
    distinct, again = _once([run for path in paths for run in _runs(path)])
    groups = _groups(distinct)
    if len(groups) < 2:
        runs = len(groups[0].runs)
        what = "one run with results" if runs == 1 else f"{runs} runs with the same settings but for the seed"
        raise SweepError(f"{', '.join(paths)}: {what}; give runs that differ in settings")
    differences = [_difference(groups[0], group) for group in groups[1:]]
    by_seeds = statistics.holm([one.seeds.p if one.seeds else None for one in differences])
    by_items = statistics.holm([one.items.p if one.items else None for one in differences])
    differences = [
        replace(one, p_seeds=seeds, p_items=items)
        for one, seeds, items in zip(differences, by_seeds, by_items, strict=True)
    ]
    tables = [_settings_table(groups), _accuracy_table(groups), _category_table(groups), _seeds_table(differences)]
    tables += [_items_table(differences), _cost_table(groups)]
    tests = [sum(p is not None for p in known) for known in (by_seeds, by_items)]
    said = [line for line in (*map(_missing, paths), again) if line]
    said += [conclusion(one, *tests) for one in differences]
    return Comparison(groups, differences, [one for one in tables if one.rows], said)


def conclusion(found: Difference, tests_of_seeds: int, tests_of_items: int) -> str:
    """What can and cannot be said of a group beside the reference, in plain sentences. tests: how many p-values were
    corrected together."""
    one, other = found.group.name, found.reference.name
    over = f"{len(found.group.runs)} and {len(found.reference.runs)} runs"
    parts = []
    seeds, items = found.seeds, found.items
    if seeds is None:
        parts.append(
            f"{one} and {other}: {over} do not show how much the seed alone matters, so nothing can be said of the "
            "settings; run at least two seeds of each"
        )
    else:
        over = f"{seeds.n} paired seeds" if found.paired else over
        what = f"After round {found.round} {one} gains {100 * seeds.mean:+.1f} points beyond {other}"
        if found.p_seeds is None:
            parts.append(f"{what} in each of {over}; without a spread between them there is no test over seeds")
        else:
            ends = f"95 % interval {shown_interval(seeds, sign=True)}, " if seeds.low is not None else ""
            real = found.p_seeds < LEVEL
            say = "more than chance between seeds explains" if real else "which chance between seeds may explain"
            parts.append(f"{what} ({over}, {ends}p {found.p_seeds:.3f}{_corrected(tests_of_seeds)}), {say}")
            if real and found.permuted is not None and found.permuted >= LEVEL:
                parts.append(
                    "This rests on the t-test's assumption of normal gains: the permutation test has p "
                    f"{found.permuted:.3f}, and with so few runs cannot fall below p {_least_permuted(found):.3f}"
                )
    if items is None:
        parts.append("The runs were asked different held-out items, so items cannot be paired")
    else:
        assert items.p is not None and found.p_items is not None
        say = "differ" if found.p_items < LEVEL else "cannot be told apart"
        parts.append(
            f"On the {items.n} held-out items these very policies {say} ({100 * items.mean:+.1f} points, "
            f"{shown_interval(items, sign=True)}, p {found.p_items:.3f}{_corrected(tests_of_items)})"
        )
    return ". ".join(parts) + "."


def _corrected(tests: int) -> str:
    return f", corrected for {tests} comparisons" if tests > 1 else ""


def _least_permuted(found: Difference) -> float:
    """The p of the permutation test where the runs of the two groups lie apart."""
    if found.paired and found.seeds:
        return 2 / 2**found.seeds.n
    n, m = len(found.group.runs), len(found.reference.runs)
    return (1 + (n == m)) / math.comb(n + m, n)


# --- reading ----------------------------------------------------------------------------------------------------------


def _runs(path: str) -> list[Run]:
    """The run of a directory, or all runs of a sweep's folder, that have been evaluated after a round."""
    if exists(join(path, KEPT)):
        names = list_names(join(path, "trials"))
        found = [
            _run(join(path, "trials", name), name) for name in names if exists(join(path, "trials", name, MANIFEST))
        ]
        runs = [run for run in found if run.figures.last]
        if not runs:
            raise DataError(f"{path}: no trial of this sweep has a held-out accuracy after a round yet; run it first")
        sweep = kept_sweep(path)
        order = {trial.name: place for place, trial in enumerate([] if sweep.search else sweep.trials())}
        return sorted(runs, key=lambda run: order.get(run.name, len(order)))
    if not exists(join(path, MANIFEST)):
        raise DataError(f"{path}: no finished stage of a run here; give run directories, or the folder of a sweep")
    run = _run(path, path.rstrip("/").rpartition("/")[2])
    if not run.figures.last:
        raise DataError(f"{path}: the run has no held-out accuracy after a round (yet); nothing of it can be compared")
    return [run]


def _missing(path: str) -> str:
    """A line on the trials of a sweep that have gone through fewer rounds than they are to; "" where none has."""
    if not exists(join(path, KEPT)) or (sweep := kept_sweep(path)).search:
        return ""
    trials = sweep.trials()
    short = []
    for trial in trials:
        folder = join(path, "trials", trial.name)
        if not exists(join(folder, MANIFEST)) or read_figures(folder).last < kept_settings(folder)["rounds"]:
            short.append(trial.name)
    return f"{path}: {len(short)} of {len(trials)} trials are not finished: {_named(short)}." if short else ""


def _run(path: str, name: str) -> Run:
    settings = kept_settings(path)
    seed = settings[SEED]
    return Run(name, read_figures(path), seed, {key: value for key, value in settings.items() if _matters(key)})


def _matters(key: str) -> bool:
    return key not in APART and not key.startswith("synthesis.")


def _once(runs: Sequence[Run]) -> tuple[list[Run], str]:
    """The runs without those that repeat another one, settings and seed, which tell nothing new; and a line on these.

    Such are the trials of a variant whose settings are the base's own.
    """
    found: dict[tuple[str, int], Run] = {}
    again: list[str] = []
    for run in runs:
        first = found.setdefault((_key(run), run.seed), run)
        if first is not run and first.figures.run_dir == run.figures.run_dir:
            raise SweepError(f"{run.figures.run_dir}: given twice")
        if first is not run:
            again.append(f"{run.name} that of {first.name}")
    if not again:
        return list(found.values()), ""
    return list(found.values()), f"The same run, settings and seed, counts once: {_named(again)}."


def _groups(runs: Sequence[Run]) -> list[Group]:
    """By settings, in the order in which they come; named after their first run, without its seed."""
    found: dict[str, list[Run]] = {}
    for run in runs:
        found.setdefault(_key(run), []).append(run)
    names: list[str] = []
    for members in found.values():
        name = members[0].name.partition(f",{SEED}=")[0]
        names.append(name if name not in names else members[0].figures.run_dir)
    return [Group(name, members) for name, members in zip(names, found.values(), strict=True)]


def _key(run: Run) -> str:
    return json.dumps(run.settings, sort_keys=True)


def _named(names: Sequence[str]) -> str:
    more = f", and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return f"{', '.join(names[:MOST_NAMED])}{more}"


# --- differences ------------------------------------------------------------------------------------------------------


def _difference(reference: Group, group: Group) -> Difference:
    round_ = min(reference.last, group.last)
    first, second = ({run.seed: run for run in one.runs} for one in (reference, group))
    both = sorted(first.keys() & second.keys())
    paired = len(both) >= 2
    seeds, permuted = None, None
    if paired:
        changes = [_gain(second[seed], round_) - _gain(first[seed], round_) for seed in both]
        seeds, permuted = mean_over_seeds(changes), statistics.sign_flips(changes)
    elif len(reference.runs) >= 2 and len(group.runs) >= 2:
        gains = [[_gain(run, round_) for run in one.runs] for one in (reference, group)]
        seeds, permuted = statistics.welch(*gains), statistics.label_permutations(*gains)
    pairs = [([first[seed]], [second[seed]]) for seed in both] if paired else [(reference.runs, group.runs)]
    changes_of_items = _item_changes(pairs, round_)
    items = None if changes_of_items is None else statistics.paired_bootstrap(changes_of_items)
    return Difference(group, reference, round_, paired, seeds, permuted, items)


def _gain(run: Run, round_: int) -> float:
    gain = run.figures.gain(round_)
    assert gain is not None  # whoever was evaluated after a round was before
    return gain


def _item_changes(
    pairs: Sequence[tuple[Sequence[Run], Sequence[Run]]], round_: int
) -> Float[np.ndarray, " items"] | None:
    """Change in correctness of every held-out item; None where the runs of a pair were asked other items.

    An item that several pairs were asked counts once, with the mean of its changes.
    """
    changes: dict[str, list[float]] = {}
    for before, after in pairs:
        sides = [[run.figures.verdicts(round_) for run in side] for side in (before, after)]
        ids = {frozenset(verdicts) for side in sides for verdicts in side}
        if len(ids) > 1 or len({run.figures.items for run in (*before, *after)}) > 1:  # ids of two sources may be alike
            return None
        for id_ in sorted(next(iter(ids))):
            means = [sum(run[id_] for run in side) / len(side) for side in sides]
            changes.setdefault(id_, []).append(means[1] - means[0])
    return np.array([sum(values) / len(values) for values in changes.values()])


# --- tables -----------------------------------------------------------------------------------------------------------


def _settings_table(groups: Sequence[Group]) -> Table:
    settings = [group.runs[0].settings for group in groups]
    keys = sorted({key for one in settings for key in one})
    different = [key for key in keys if len({json.dumps(one.get(key)) for one in settings}) > 1]
    rows = [
        [
            group.name, *(json.dumps(one.get(key), ensure_ascii=False) for key in different), str(len(group.runs)),
            ", ".join(str(run.seed) for run in group.runs),
        ]
        for group, one in zip(groups, settings, strict=True)
    ]  # fmt: skip
    columns = ["runs of", *different, "n", "seeds"]
    return Table("Settings that differ", columns, rows, f"{len(keys) - len(different)} others are equal")


def _accuracy_table(groups: Sequence[Group]) -> Table:
    rounds = range(max(group.last for group in groups) + 1)
    rows = []
    for group in groups:
        cells = [_mean_at(group, round_) for round_ in rounds]
        gain = shown_mean(group.gain, sign=True), shown_interval(group.gain, sign=True)
        rows.append([group.name, str(len(group.runs)), *cells, *gain])
    columns = ["runs of", "n", *(_round_name(round_) for round_ in rounds), "gain ± s.d.", "95 % interval"]
    note = (
        "held-out accuracy in per cent, means over n runs ± standard deviation; gain in points, interval by Student's t"
    )
    return Table("Held-out accuracy", columns, rows, note)


def _mean_at(group: Group, round_: int) -> str:
    values = [value for run in group.runs if (value := run.figures.accuracy(round_)) is not None]
    return shown_mean(mean_over_seeds(values)) if values else "–"


def _category_table(groups: Sequence[Group]) -> Table:
    asked = [run.figures.held_out[group.last]["by_category"] for group in groups for run in group.runs]
    names = sorted({name for categories in asked for name in categories})
    rows = []
    for group in groups:
        cells = []
        for name in names:
            found = [run.figures.held_out[group.last]["by_category"].get(name) for run in group.runs]
            values = [one["accuracy"] for one in found if one]
            cells.append(percent(sum(values) / len(values)) if values else "–")
        rows.append([group.name, *cells])
    return Table("By category", ["runs of", *names], rows, "held-out accuracy after the last round, means over runs")


def _seeds_table(differences: Sequence[Difference]) -> Table:
    rows = [
        [
            one.group.name, str(one.round), f"{one.seeds.n} {'pairs' if one.paired else 'runs'}",
            shown_mean(one.seeds, sign=True), shown_interval(one.seeds, sign=True), _p(one.seeds.p), _p(one.p_seeds),
            _p(one.permuted),
        ]
        for one in differences
        if one.seeds
    ]  # fmt: skip
    columns = ["group", "round", "n", "gain beyond", "95 % interval", "p", "p (Holm)", "p (permuted)"]
    note = "paired t-test where runs share seeds, else Welch's; permuted: all signs of pairs, or all divisions of runs"
    return Table(f"Over seeds, beside {differences[0].reference.name}", columns, rows, note)


def _items_table(differences: Sequence[Difference]) -> Table:
    rows = [
        [
            one.group.name, str(one.round), str(one.items.n), f"{100 * one.items.mean:+.1f}",
            shown_interval(one.items, sign=True), _p(one.items.p), _p(one.p_items),
        ]
        for one in differences
        if one.items
    ]  # fmt: skip
    columns = ["group", "round", "items", "accuracy beyond", "95 % interval", "p", "p (Holm)"]
    note = "of these very policies: interval by a paired bootstrap over the held-out items, p of the test of signs"
    return Table(f"Over items, beside {differences[0].reference.name}", columns, rows, note)


def _cost_table(groups: Sequence[Group]) -> Table:
    rows = [
        [
            group.name, str(len(group.runs)), f"{sum(run.figures.seconds for run in group.runs) / len(group.runs):.0f}",
            f"{sum(run.figures.tokens for run in group.runs) / len(group.runs):,.0f}",
        ]
        for group in groups
    ]  # fmt: skip
    return Table("Cost of a run", ["runs of", "n", "seconds", "tokens of answers"], rows, "means over runs")


def _chart(groups: Sequence[Group]) -> str:
    found = [group.gain for group in groups]
    ends = [None if one.low is None or one.high is None else (one.low, one.high) for one in found]
    dots = charts.Dots("gain", [one.mean for one in found], ends)
    return charts.interval_chart(
        "Gain in held-out accuracy over before", [group.name for group in groups], [dots],
        zero=True, form=lambda value: f"{100 * value:+.1f}", note="in points; 95 % over seeds, where there are several",
    )  # fmt: skip


def _csv(differences: Sequence[Difference]) -> str:
    lines = io.StringIO()
    writer = csv.writer(lines, lineterminator="\n")
    kinds = ("n", "mean", "sd", "low", "high", "p")
    head = [f"{over}_{kind}" for over in ("seeds", "items") for kind in kinds]
    writer.writerow(["group", "reference", "round", "paired", *head, "seeds_p_holm", "items_p_holm", "p_permuted"])
    for one in differences:
        cells = [getattr(found, kind, None) for found in (one.seeds, one.items) for kind in kinds]
        names = (one.group.name, one.reference.name, one.round, one.paired)
        writer.writerow([*names, *cells, one.p_seeds, one.p_items, one.permuted])
    return lines.getvalue()


def _round_name(round_: int) -> str:
    return f"round {round_}" if round_ else "before"


def _p(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
