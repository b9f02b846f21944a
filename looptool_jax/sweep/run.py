"""A sweep from its settings to its summary."""

from __future__ import annotations

import re

from looptool_jax.data.store import exists, join, lock_directory
from looptool_jax.loop.console import Console
from looptool_jax.loop.manifest import NAME as MANIFEST
from looptool_jax.loop.runner import is_finished
from looptool_jax.report.tables import Table
from looptool_jax.sweep.figures import Figures, read_figures
from looptool_jax.sweep.order import GridOrder, Order, Task
from looptool_jax.sweep.search import FILE, SearchOrder
from looptool_jax.sweep.space import Sweep, Trial, check, keep_sweep
from looptool_jax.sweep.summary import FILES, Row, write_summary
from looptool_jax.sweep.trials import Place, Trials
from looptool_jax.sweep.values import SweepError

Shard = tuple[int, int]
STOPS = "stopped.jsonl"


def run_sweep(
    sweep: Sweep, out: str, console: Console, parallel: int = 1, shard: Shard = (1, 1), place: Place | None = None
) -> Trials:
    """Run the trials that are not finished yet, and write the summary; returns what became of them.

    shard: (i, n): every n-th trial, from the i-th. Raises SweepError, ConfigError; DataError where another process
    works on this sweep, or on this shard of it.
    """
    trials = check(sweep)
    place = place or Place()
    _check_together(sweep, parallel, shard, place)
    work = Trials(sweep, out, console, parallel, place)

    def figures(trial: Trial) -> Figures:
        return read_figures(work.run_dir(trial))

    def summary() -> Table:
        found = order.trials if isinstance(order, SearchOrder) else trials
        return write_summary(sweep, [_row(trial, work, order) for trial in found], out)

    name = "all" if shard == (1, 1) else f"{shard[0]}-of-{shard[1]}"
    with lock_directory(join(out, "locks", name)):
        keep_sweep(sweep, out)
        console.say(f"looptool sweep: {sweep.name} in {out}, logs of trials in {join(out, 'logs')} (rerun to resume)")
        order: GridOrder | SearchOrder
        if place.first:
            work.on_end = summary
        if sweep.search:
            rounds = sweep.trial_config(trials[0], out).rounds
            order = SearchOrder(sweep, rounds, join(out, FILE), figures)
        else:
            rounds = sweep.trial_config(trials[0], out).rounds if sweep.prune else 0
            order = GridOrder(trials[shard[0] - 1 :: shard[1]], rounds, sweep.prune, figures, join(out, STOPS))
        work.work(order)
        if place.first:
            console.table(summary().rich())
            if isinstance(order, SearchOrder) and (best := order.best):
                console.say(f"best: {best.trials[0].group}, {sweep.search.metric} {best.told['value']:.4g}")  # type: ignore[union-attr]
            console.say(f"{', '.join(FILES)} -> {out}")
    return work


def read_shard(text: str | None) -> Shard:
    """(2, 8) of "2/8". Raises SweepError."""
    found = re.fullmatch(r"([1-9]\d{0,3})/([1-9]\d{0,3})", text or "1/1")
    if not found or int(found[1]) > int(found[2]):
        raise SweepError(f"--shard {text}: expected I/N with I from 1 to N, such as 2/8")
    return int(found[1]), int(found[2])


def dry_run(sweep: Sweep, out: str, shard: Shard = (1, 1), place: Place | None = None) -> list[list[str]]:
    """The commands of the trials, in their order. Raises SweepError where a search will find its trials only then."""
    trials = check(sweep)
    if sweep.search:
        raise SweepError("--dry-run: a search asks for its points as it goes, so its commands are not known yet")
    work = Trials(sweep, out, Console(quiet=True), place=place)
    return [["looptool", *work.command(Task(trial))] for trial in trials[shard[0] - 1 :: shard[1]]]


def _check_together(sweep: Sweep, parallel: int, shard: Shard, place: Place) -> None:
    if place.several and parallel > 1:
        raise SweepError("--parallel: processes that work together run one trial after another; leave it at 1")
    alone = "a search" if sweep.search else "prune" if sweep.prune else ""
    if alone and place.several:
        raise SweepError(f"{alone}: needs one process that decides what is next; run it on one host")
    if alone and shard != (1, 1):
        raise SweepError(f"--shard: {alone} has to know all trials; run it whole, with --parallel where devices allow")


def _row(trial: Trial, work: Trials, order: Order) -> Row:
    run_dir = work.run_dir(trial)
    problem = work.failures.get(trial.name, "")
    try:
        found = read_figures(run_dir)
        if problem:
            status = "failed"
        elif is_finished(work.config(Task(trial))):
            status = "finished"
        elif trial.group in order.stopped:
            status = "stopped"
        else:
            status = "unfinished" if exists(join(run_dir, MANIFEST)) else "waiting"
        return Row(trial, found, status, problem)
    except ValueError as error:  # a damaged manifest; settings that do not go together
        return Row(trial, Figures(run_dir, None, {}, None, {}, 0.0, 0), "failed", problem or str(error))
