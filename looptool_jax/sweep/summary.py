"""What a sweep found: a row for each trial (CSV), and means over seeds for each group of settings."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from looptool_jax.data.store import join, write_text
from looptool_jax.evaluation.statistics import Estimate, mean_over_seeds
from looptool_jax.report import charts
from looptool_jax.report.page import Section, page, table
from looptool_jax.report.tables import Table, markdown_text, percent
from looptool_jax.sweep.figures import Figures
from looptool_jax.sweep.space import Sweep, Trial

FILES = ("results.csv", "summary.md", "summary.html")
REPAIR = ("precision", "recall", "repaired", "harm", "noise_before", "noise_after")


@dataclass(frozen=True)
class Row:
    """A trial and its figures. status: finished, stopped, failed, unfinished or waiting. problem: why it failed."""

    trial: Trial
    figures: Figures
    status: str
    problem: str = ""


def write_summary(sweep: Sweep, rows: Sequence[Row], out: str) -> Table:
    """Write results.csv, summary.md and summary.html into the sweep's folder; returns the table of the groups."""
    found = groups_table(rows)
    failed = Table(
        "Trials that failed", ["trial", "last line"], [[row.trial.name, row.problem] for row in rows if row.problem]
    )
    tables = [found, _trials_table(rows), *([failed] if failed.rows else [])]
    write_text(join(out, FILES[0]), results_csv(sweep, rows))
    write_text(
        join(out, FILES[1]),
        f"# Sweep {markdown_text(sweep.name)}\n\n" + "\n\n".join(one.markdown() for one in tables) + "\n",
    )
    sections = [Section("groups", "Groups of settings", _charts(rows) + table(found))]
    sections.append(Section("trials", "Every trial", "".join(map(table, tables[1:]))))
    write_text(join(out, FILES[2]), page(f"Sweep {sweep.name}", out, sections))
    return found


def results_csv(sweep: Sweep, rows: Sequence[Row]) -> str:
    """Every trial with its settings, accuracy round by round, label repair of its last round, cost and status."""
    rounds = range(max((row.figures.last for row in rows), default=0) + 1)
    keys = sweep.keys
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([
        "trial", "group", "seed", "status", *keys, *(f"accuracy_{round_}" for round_ in rounds), "gain", "reward",
        *REPAIR, "seconds", "tokens", "problem",
    ])  # fmt: skip
    for row in rows:
        found = row.figures
        writer.writerow([
            row.trial.name, row.trial.group, row.trial.seed, row.status, *(row.trial.settings.get(key) for key in keys),
            *(found.accuracy(round_) for round_ in rounds), _rounded(found.gain()), found.reward,
            *(found.repair.get(key) for key in REPAIR), round(found.seconds, 1), found.tokens, row.problem,
        ])  # fmt: skip
    return text.getvalue()


def groups_table(rows: Sequence[Row]) -> Table:
    """A line for each group: its trials that came to their end, and means over them with 95 % t-intervals."""
    lines = []
    for group, ended in by_group(rows).items():
        of_group = [row for row in rows if row.trial.group == group]
        stopped = any(row.status == "stopped" for row in of_group)
        last = ended[0].figures.last if ended else 0
        before, after, gain = (_estimate(ended, what) for what in ("before", "after", "gain"))
        lines.append([
            group, f"{len(ended)} of {len(of_group)}", f"{last}{' (stopped)' if stopped else ''}" if ended else "–",
            percent(before.mean) if before else "–", shown_mean(after), shown_interval(after),
            shown_mean(gain, sign=True), shown_interval(gain, sign=True), _seconds(ended),
        ])  # fmt: skip
    columns = [
        "settings", "runs", "round", "before", "held-out ± s.d.", "95 % interval", "gain ± s.d.", "95 % interval",
        "seconds a run",
    ]  # fmt: skip
    note = "means over the runs of a group, which differ by seed; intervals by Student's t, none from one run"
    return Table("Settings", columns, lines, note)


def by_group(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The trials that ended, as they should or stopped early, by group; groups in the order of the sweep."""
    groups: dict[str, list[Row]] = {row.trial.group: [] for row in rows}
    for row in rows:
        if row.status in ("finished", "stopped"):
            groups[row.trial.group].append(row)
    return groups


def shown_mean(found: Estimate | None, sign: bool = False) -> str:
    """A mean of accuracies in per cent (differences in points), with its standard deviation."""
    if found is None:
        return "–"
    sd = "" if found.sd is None else f" ± {100 * found.sd:.1f}"
    return f"{100 * found.mean:{'+' if sign else ''}.1f}{sd}"


def shown_interval(found: Estimate | None, sign: bool = False) -> str:
    if found is None or found.low is None or found.high is None:
        return "–"
    plus = "+" if sign else ""
    return f"{100 * found.low:{plus}.1f} to {100 * found.high:{plus}.1f}"


def _estimate(rows: Sequence[Row], what: str) -> Estimate | None:
    of = {
        "before": lambda found: found.accuracy(0),
        "after": lambda found: found.accuracy(found.last),
        "gain": Figures.gain,
    }[what]
    values = [of(row.figures) for row in rows]
    known = [value for value in values if value is not None]
    return mean_over_seeds(known) if known and len(known) == len(values) else None


def _trials_table(rows: Sequence[Row]) -> Table:
    rounds = range(max((row.figures.last for row in rows), default=0) + 1)
    lines = [
        [
            row.trial.name, row.status, *(percent(row.figures.accuracy(round_)) for round_ in rounds),
            _number(row.figures.reward), percent(row.figures.repair.get("precision")),
            percent(row.figures.repair.get("recall")), percent(row.figures.repair.get("harm")),
            f"{row.figures.seconds:.0f}", f"{row.figures.tokens:,}",
        ]
        for row in rows
    ]  # fmt: skip
    columns = [
        "trial", "status", *("before" if not round_ else f"round {round_}" for round_ in rounds), "reward", "precision",
        "recall", "harm", "seconds", "tokens",
    ]  # fmt: skip
    return Table("Trials", columns, lines, "precision, recall and harm: of the label repair of the last round")


def _charts(rows: Sequence[Row]) -> str:
    groups = {group: ended for group, ended in by_group(rows).items() if _estimate(ended, "gain")}
    if not groups:
        return ""
    drawn = charts.interval_chart(
        "Held-out accuracy after the last round", list(groups), [_dots("after", groups)], note="95 % over seeds"
    ) + charts.interval_chart(
        "Gain over before", list(groups), [_dots("gain", groups)], zero=True, form=lambda v: f"{100 * v:+.1f}",
        note="in points",
    )  # fmt: skip
    if 1 <= len(groups) <= charts.SERIES:
        lines = [_line(group, ended) for group, ended in groups.items()]
        rounds = sorted({round_ for line in lines for round_ in line.x})
        drawn += charts.line_chart(
            "Held-out accuracy round by round", lines, x_label="round", x_ticks=[(at, f"{at:.0f}") for at in rounds],
            form=percent, note="means over seeds",
        )  # fmt: skip
    return f'<div class="charts">{drawn}</div>'


def _dots(what: str, groups: Mapping[str, Sequence[Row]]) -> charts.Dots:
    found = [_estimate(ended, what) for ended in groups.values()]
    ends = [None if one is None or one.low is None or one.high is None else (one.low, one.high) for one in found]
    return charts.Dots(what, [one.mean if one else None for one in found], ends)


def _line(group: str, ended: Sequence[Row]) -> charts.Line:
    rounds = sorted(set.intersection(*({*row.figures.held_out} for row in ended)))
    values = [mean_over_seeds([row.figures.held_out[round_]["accuracy"] for row in ended]).mean for round_ in rounds]
    return charts.Line(group, rounds, values)


def _seconds(rows: Sequence[Row]) -> str:
    return f"{sum(row.figures.seconds for row in rows) / len(rows):.0f}" if rows else "–"


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
