"""Data in and out: import, publish, and what `looptool data` does with data sets."""

from __future__ import annotations

from typing import Annotated

import typer

from looptool_jax.cli.common import Config, Model, Out, Overrides, app, check_apart, configuration, samples_of

data_commands = typer.Typer(rich_markup_mode=None, no_args_is_help=True)
app.add_typer(data_commands, name="data")


@app.command("import")
def import_(
    file: Annotated[str, typer.Argument(help="The file to read, or a data set: hf:NAME, tfds:NAME (docs/DATA.md).")],
    format_: Annotated[
        str,
        typer.Option(
            "--format",
            "-f",
            help="looptool, openai, toolrl, seal_tools, sharegpt, toolace, xlam, hermes, bfcl_style or mcp.",
        ),
    ],
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
    """Publish a run's data sets D_1, D_2, ... as one TFDS data set, a configuration a round.

    \b
    looptool publish runs/quickstart --out published
    """
    from looptool_jax.data.publish import publish as publish_rounds
    from looptool_jax.data.store import DataError, exists, join
    from looptool_jax.loop.manifest import data_file

    rounds: dict[int, str] = {}
    while exists(path := join(run_dir, data_file(len(rounds) + 1))):
        rounds[len(rounds) + 1] = path
    if not rounds:
        raise DataError(f"{run_dir}: no data sets here ({data_file(1)} is missing); give the directory of a run")
    print(publish_rounds(rounds, out, name))


@data_commands.callback()
def data() -> None:
    """Look at data sets, check them, and turn them and tool documents into what other programs read.

    \b
    looptool data inspect seeds
    looptool data export seeds --format sharegpt --out train.jsonl
    """


@data_commands.command()
def inspect(
    file: Annotated[str, typer.Argument(help="Samples: a .jsonl file, or a folder with a sample set.")],
    show: Annotated[int, typer.Option("--show", min=0, help="Samples to print as the model reads them.")] = 2,
    config: Config = "quickstart",
    model: Model = None,
    overrides: Overrides = None,
) -> None:
    """Counts, token lengths, schema faults and repetitions of a sample set; tokens are those of policy or --model.

    \b
    looptool data inspect seeds
    looptool data inspect seeds --model Qwen/Qwen3-0.6B --show 5
    """
    from dataclasses import replace

    from looptool_jax.data.inspect import inspect_samples
    from looptool_jax.inference.lm import read_description
    from looptool_jax.loop.console import Console
    from looptool_jax.loop.pool import locate_base
    from looptool_jax.report.samples import inspection_tables, rendered

    cfg = configuration(config, overrides, model)
    samples = samples_of(file)
    _, _, tokenizer = read_description(replace(cfg.policy, path=locate_base(cfg.policy.place)))
    found = inspect_samples(samples, tokenizer)
    console = Console()
    console.say(f"{file}: {found.samples} samples, {found.tools} tool documents, {len(found.faults)} faults")
    for table in inspection_tables(found, cfg.policy.place):
        console.table(table.rich())
    for number in range(min(show, len(samples))):
        sample = samples[number * len(samples) // show]
        console.say(f"\n════════ {sample.id} ({sample.category or sample.origin.kind})")
        console.say(rendered(sample, tokenizer.format))


@data_commands.command("export")
def export(
    file: Annotated[str, typer.Argument(help="Samples: a .jsonl file, or a folder with a sample set.")],
    format_: Annotated[
        str,
        typer.Option("--format", "-f", help="openai, toolace, xlam, hermes, sharegpt, toolrl or looptool."),
    ],
    out: Annotated[str, typer.Option("--out", "-o", help="The .jsonl file to write.")],
) -> None:
    """Write samples in another program's format; what it cannot hold is counted, and listed in OUT's .losses.jsonl.

    \b
    looptool data export runs/quickstart/round-2/data.jsonl --format sharegpt --out train.jsonl
    """
    from looptool_jax.data.exporters import export_samples, write_export

    check_apart(file, out)
    write_export(export_samples(samples_of(file), format_), out)


@data_commands.command()
def tools(
    file: Annotated[str, typer.Argument(help="The document, local or at a URL.")],
    format_: Annotated[str, typer.Option("--format", "-f", help="openapi, mcp, openai or seal_tools.")],
    out: Annotated[str, typer.Option("--out", "-o", help="The .jsonl file to write.")],
) -> None:
    """Read a list of tools; what is none goes to OUT's .rejected.jsonl with its place and a reason.

    \b
    looptool data tools openapi.yaml --format openapi --out tools.jsonl
    """
    from looptool_jax.data.store import DataError
    from looptool_jax.data.tool_documents import read_tools, write_tools

    check_apart(file, out)
    documents = read_tools(file, format_)
    write_tools(documents, out)
    if not documents.tools:
        raise DataError(f"{file}: no tools of the format {format_}; the reasons are beside {out}")


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
