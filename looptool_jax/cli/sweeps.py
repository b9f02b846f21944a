"""Many runs: sweep and compare."""

from __future__ import annotations

import shlex
import sys
from typing import Annotated

import typer

from looptool_jax.cli.closed_loop import Coordinator, Process, Processes, Quiet
from looptool_jax.cli.common import app, end

Arguments = Annotated[
    list[str] | None,
    typer.Argument(metavar="[NAME_OR_FILE] [KEY=VALUES]...", help="A shipped sweep or a YAML file; settings to vary."),
]


@app.command()
def sweep(
    arguments: Arguments = None,
    config: Annotated[
        str | None, typer.Option("--config", "-c", help="The base: a shipped configuration, or a YAML file.")
    ] = None,
    out: Annotated[
        str | None, typer.Option("--out", "-o", help="Folder of the sweep; rerun to resume [runs/sweep-NAME].")
    ] = None,
    parallel: Annotated[int, typer.Option("--parallel", metavar="N", min=1, help="Trials at a time.")] = 1,
    shard: Annotated[
        str | None, typer.Option("--shard", metavar="I/N", help="Every N-th trial, from the I-th.")
    ] = None,
    trials: Annotated[int | None, typer.Option("--trials", min=1, help="Points of a search.")] = None,
    method: Annotated[str | None, typer.Option("--method", help="Of a search: tpe or random.")] = None,
    metric: Annotated[str | None, typer.Option("--metric", help="Of a search: accuracy, gain or reward.")] = None,
    prune: Annotated[bool, typer.Option("--prune", help="Stop trials below the median behind a round.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the commands of the trials, run none.")] = False,
    quiet: Quiet = False,
    coordinator: Coordinator = None,
    count: Processes = None,
    index: Process = None,
) -> None:
    """Run the loop with many settings and seeds, each trial a run of its own; the same command resumes.

    Values: 1,2,3 or range(3); zip(1,2) moves together with every other zip; a search draws from uniform(low,high),
    loguniform(low,high), int(low,high) and choice(a,b). Exit status 1 where trials failed.

    \b
    looptool sweep --config quickstart 'train.optimizer.learning_rate=1e-4,3e-4' 'seed=range(3)'
    looptool sweep ablations 'seed=range(8)'
    looptool sweep search --trials 40
    looptool sweep mine.yaml --out gs://bucket/sweep --shard 2/8
    looptool sweep ablations --dry-run
    """
    from looptool_jax.data.files import write_files
    from looptool_jax.loop.console import Console, shown
    from looptool_jax.parallel.processes import PREEMPTED, index_of
    from looptool_jax.sweep.run import dry_run as commands_of
    from looptool_jax.sweep.run import read_shard, run_sweep
    from looptool_jax.sweep.space import read_sweep
    from looptool_jax.sweep.trials import Place

    given = list(arguments or ())
    name = given.pop(0) if given and "=" not in given[0] else None
    space = read_sweep(name, config, given, method=method, trials=trials, metric=metric, prune=prune)
    folder = out or f"runs/sweep-{space.name}"
    flags = [("--coordinator", coordinator), ("--processes", count), ("--process", index)]
    mine = index_of(coordinator, count, index)
    place = Place(
        mine or 0, mine is not None, [word for flag, value in flags if value is not None for word in (flag, str(value))]
    )
    part = read_shard(shard)
    if dry_run:
        for command in commands_of(space, folder, part, place):
            print(shlex.join(command))
        return
    write_files(place.first)
    ended = run_sweep(space, folder, Console(quiet or not place.first), parallel, part, place)
    for trial, reason in ended.failures.items():
        print(f"looptool: {trial} failed: {shown(reason)}", file=sys.stderr)
    if ended.stop.why == "interrupted":
        end("looptool: interrupted; give the same command again to continue", 130)
    if ended.stop.why:
        end(PREEMPTED, 0)
    if ended.failures:
        end(f"looptool: {len(ended.failures)} failed; give the same command again to try them again", 1)


@app.command()
def compare(
    runs: Annotated[list[str], typer.Argument(metavar="RUN_OR_SWEEP...", help="Run directories, or a sweep's folder.")],
    out: Annotated[
        str | None, typer.Option("--out", "-o", help="Folder for comparison.html, comparison.md and comparison.csv.")
    ] = None,
) -> None:
    """Compare runs: what differs in settings, held-out accuracy, cost, and which differences are more than chance.

    Runs that differ by seed alone are one group. The first group is what the others are held against.

    \b
    looptool compare runs/quickstart runs/static
    looptool compare runs/sweep-ablations --out comparison
    """
    from looptool_jax.loop.console import Console
    from looptool_jax.sweep.compare import compare_runs

    found = compare_runs(runs)
    console = Console()
    for table in found.tables:
        console.table(table.rich())
    for line in found.conclusions:
        console.say(line)
    if out:
        found.write(out)
        console.say(f"comparison.html, comparison.md, comparison.csv -> {out}")
