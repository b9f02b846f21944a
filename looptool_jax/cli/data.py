"""Data in and out: import, publish; and looking at it: `looptool data`."""

from __future__ import annotations

from typing import Annotated

import typer

from looptool_jax.cli.common import Out, app, samples_of

data_commands = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Look at samples, and check them.")
app.add_typer(data_commands, name="data")


@app.command("import")
def import_(
    file: Annotated[str, typer.Argument(help="The file to read.")],
    format_: Annotated[str, typer.Option("--format", "-f", help="looptool, openai, toolrl, seal_tools or sharegpt.")],
    out: Out,
    tools: Annotated[str | None, typer.Option("--tools", help="Tool documents, for seal_tools.")] = None,
) -> None:
    """Turn foreign tool-call data into samples; what cannot be read goes to OUT/rejected.jsonl with line and reason.

    \b
    looptool import messages.jsonl --format openai --out seeds
    """
    from looptool_jax.data.importers import import_file, write_import
    from looptool_jax.data.store import DataError

    result = import_file(file, format_, tools=tools)
    write_import(result, out)
    if result.read and not result.samples:
        raise DataError(f"{file}: no record is of the format {format_}; the reasons are in {out}/rejected.jsonl")


@app.command()
def publish(
    run_dir: Annotated[str, typer.Argument(help="Run directory.")],
    out: Out,
    name: Annotated[str, typer.Option("--name", help="Of the data set: small letters, digits, _.")] = "looptool",
) -> None:
    """Publish a run's data sets D_1, D_2, ... as one TFDS data set (ArrayRecord), a split a round.

    \b
    looptool publish runs/quickstart --out published
    """
    from looptool_jax.data.publish import publish as publish_rounds
    from looptool_jax.data.store import DataError, exists, join
    from looptool_jax.loop.runner import data_file

    rounds: dict[int, str] = {}
    while exists(path := join(run_dir, data_file(len(rounds) + 1))):
        rounds[len(rounds) + 1] = path
    if not rounds:
        raise DataError(f"{run_dir}: no data sets here ({data_file(1)} is missing); give the directory of a run")
    print(publish_rounds(rounds, out, name))


@data_commands.command()
def contamination(
    file: Annotated[str, typer.Argument(help="Samples: a .jsonl file, or a folder with a sample set.")],
    out: Out,
    bfcl: Annotated[
        str, typer.Option("--bfcl", help="Folder with BFCL's files, auto (the package bfcl-eval's), or off.")
    ] = "auto",
    acebench: Annotated[
        str, typer.Option("--acebench", help="Checkout of ACEBench, or its data; auto ($ACEBENCH_DIR), or off.")
    ] = "auto",
) -> None:
    """Which samples are in a benchmark: the same request, or most of one, and the same tools.

    The pairs go to OUT/contamination.jsonl; nothing of a benchmark but the ids of its rows does.

    \b
    looptool data contamination seeds --acebench ACEBench --out checked
    """
    from looptool_jax.data.contamination import ContaminationConfig, check_samples, fingerprints
    from looptool_jax.data.store import DataError, join, write_jsonl
    from looptool_jax.loop.console import Console
    from looptool_jax.report.tables import contamination_table

    samples = samples_of(file)
    prints, not_checked = fingerprints(ContaminationConfig(bfcl, acebench))
    if not prints:
        raise DataError("; ".join(not_checked))
    report = check_samples(samples, prints)
    write_jsonl(join(out, "contamination.jsonl"), report.to_json())
    console = Console()
    console.table(contamination_table([(file, report.checked, report.counts())]).rich())
    for line in not_checked:
        console.say(line)
    console.say(f"{len(report.contaminated)} of {report.checked} samples are in a benchmark  -> {out}")
