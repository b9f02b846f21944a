"""`looptool eval`: accuracy of a policy, on samples and on benchmarks."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from looptool_jax.cli.common import (
    Config,
    Data,
    Model,
    Out,
    Overrides,
    app,
    configuration,
    finish,
    model_pool,
    results,
    samples_of,
)


class _Eval(TyperGroup):
    """`looptool eval --data ...` is `looptool eval samples --data ...`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        named = bool(args) and (args[0] in self.commands or args[0] == "--help")
        return super().parse_args(ctx, args if named else ["samples", *args])


evals = typer.Typer(cls=_Eval, rich_markup_mode=None)
app.add_typer(evals, name="eval")


@evals.callback()
def evaluate() -> None:
    """Accuracy of a policy, on samples or on a benchmark.

    \b
    looptool eval --data heldout.jsonl --model trained/policy --out evaluated
    looptool eval bfcl --model trained/policy --out evaluated
    looptool eval acebench --data ACEBench --model trained/policy --out evaluated
    """


@evals.command("samples")
def evaluate_samples(
    data: Data, out: Out, config: Config = "quickstart", model: Model = None, overrides: Overrides = None
) -> None:
    """Accuracy of a policy on samples under the strict matcher, by category. Rerun to resume. The default: its name may
    be left out.

    \b
    looptool eval --data heldout.jsonl --model trained/policy --out evaluated
    """
    from looptool_jax.evaluation import heldout

    cfg = configuration(config, overrides, model)
    samples = samples_of(data)
    with results(out, "eval samples", cfg, [data]) as console:
        policy = model_pool(cfg, out).lend(cfg.policy)
        metrics = heldout.evaluate(policy, samples, cfg.evaluate, out, console)
        for name, part in metrics["by_category"].items():
            console.say(f"  {name}: {part['accuracy']:.1%} of {part['items']}")
    finish(metrics, out)


@evals.command("bfcl")
def evaluate_bfcl(
    out: Out,
    data: Annotated[
        str | None, typer.Option("--data", "-d", help="Folder with BFCL's files; default: the package bfcl-eval's.")
    ] = None,
    categories: Annotated[
        str,
        typer.Option(
            "--categories", help="Names with commas between, or all, single_turn, live, non_live, multi_turn."
        ),
    ] = "single_turn",
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Rows of each category.")] = None,
    export: Annotated[
        str | None, typer.Option("--export", help="Folder for result files that `bfcl evaluate` reads.")
    ] = None,
    config: Config = "quickstart",
    model: Model = None,
    overrides: Overrides = None,
) -> None:
    """Accuracy of a policy on BFCL's categories; sizes are those of evaluate.answers. Rerun to resume.

    The rows are the user's own copy: pip install --no-deps bfcl-eval, or --data. Multi-turn rows are played on that
    copy's services, which need pip install 'looptool-jax[bfcl]'.

    \b
    looptool eval bfcl --model trained/policy --out evaluated
    looptool eval bfcl --config paper_8b --model Qwen/Qwen3-8B --categories all --export official --out evaluated
    """
    from looptool_jax.data.store import join, read_jsonl
    from looptool_jax.evaluation.bfcl import data as bfcl
    from looptool_jax.evaluation.bfcl.evaluate import evaluate
    from looptool_jax.evaluation.bfcl.export import export_results
    from looptool_jax.evaluation.bfcl.multi_turn import read_multi_turn
    from looptool_jax.evaluation.bfcl.services import service_files
    from looptool_jax.parallel import processes
    from looptool_jax.report.bfcl import bfcl_tables
    from looptool_jax.report.tables import too_long

    cfg = configuration(config, overrides, model)
    chosen, folder = bfcl.choose_categories(categories.split(",")), bfcl.data_folder(data)
    single = [category for category in chosen if category.kind != "multi_turn"]
    rows = [row for category in single for row in bfcl.read_category(folder, category, limit)]
    several = [category for category in chosen if category.kind == "multi_turn"]
    dialogues = [row for category in several for row in read_multi_turn(folder, category, limit)]
    files = [str(file) for category in chosen for file in bfcl.category_files(folder, category)]
    files += map(str, service_files(folder) if several else ())
    with results(out, "eval bfcl", cfg, files) as console:
        policy = model_pool(cfg, out).lend(cfg.policy)
        console.expect(len(rows) + sum(len(row.turns) for row in dialogues))
        scores = evaluate(policy, rows, dialogues, cfg.evaluate.answers, out, console.tokens, console.advance)
        for table in bfcl_tables(scores):
            console.table(table.rich())
        if line := too_long(scores, cfg.evaluate.answers.prompt_tokens):
            console.say(line)
        if export is not None:
            processes.by_first(lambda: export_results(list(read_jsonl(join(out, "results.jsonl"))), export))
        console.say(f"Not measured: {', '.join(scores['missing'])}\n{len(rows) + len(dialogues)} rows  -> {out}")


@evals.command("acebench")
def evaluate_acebench(
    out: Out,
    data: Annotated[str, typer.Option("--data", "-d", help="Checkout of ACEBench, or the folder of its English data.")],
    categories: Annotated[
        str, typer.Option("--categories", help="Names with commas between, or normal, special, agent, all.")
    ] = "all",
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Rows of each category.")] = None,
    config: Config = "quickstart",
    model: Model = None,
    overrides: Overrides = None,
) -> None:
    """Accuracy of a policy on ACEBench (English, without Agent multi-turn); sizes are those of evaluate.answers. Rerun
    to resume.

    The rows are the user's own checkout of ACEBench/ACEBench. Agent multi-step runs the scenarios' Python code from it.

    \b
    looptool eval acebench --data ACEBench --model trained/policy --out evaluated
    looptool eval acebench --data ACEBench --config paper_8b --model Qwen/Qwen3-8B --categories special --out evaluated
    """
    from looptool_jax.data.store import DataError
    from looptool_jax.evaluation.acebench import agent
    from looptool_jax.evaluation.acebench import data as acebench
    from looptool_jax.evaluation.acebench.evaluate import evaluate
    from looptool_jax.evaluation.acebench.scores import NOT_MEASURED
    from looptool_jax.report.acebench import acebench_tables
    from looptool_jax.report.tables import too_long

    cfg = configuration(config, overrides, model)
    chosen, folder = acebench.choose_categories(categories.split(",")), acebench.data_folder(data)
    classes = agent.scenario_classes(folder) if any(category.kind == "agent" for category in chosen) else None
    left_out = [category.name for category in chosen if category.kind == "agent" and classes is None]
    rows = [row for part in chosen if part.kind != "agent" for row in acebench.read_category(folder, part, limit)]
    tasks = agent.read_rows(folder, limit) if classes else []
    if not rows and not tasks:
        raise DataError(f"{data}: the scenarios of {left_out[0]} are not here; give --data a checkout of ACEBench")
    files = [str(file) for category in chosen for file in acebench.category_files(folder, category)]
    files += map(str, agent.scenario_files(folder) if tasks else ())
    with results(out, "eval acebench", cfg, files) as console:
        policy = model_pool(cfg, out).lend(cfg.policy)
        console.expect(len(rows) + len(tasks))
        sizes = cfg.evaluate.answers
        scores = evaluate(policy, rows, sizes, out, console.tokens, console.advance, tasks, classes)
        for table in acebench_tables(scores):
            console.table(table.rich())
        if line := too_long(scores, sizes.prompt_tokens):
            console.say(line)
        for name in left_out:
            console.say(f"{name} is left out: its scenarios are not in {data}; give --data a checkout of ACEBench")
        console.say(f"{NOT_MEASURED}\n{len(rows) + len(tasks)} answers and tasks  -> {out}")
