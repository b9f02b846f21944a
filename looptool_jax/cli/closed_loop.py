"""The closed loop, whole and stage by stage: run, preflight, report, probe, judge, expand, compose, train, warmup."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import Annotated

import typer

from looptool_jax.cli.common import (
    Config,
    Data,
    Model,
    Out,
    Overrides,
    Round,
    app,
    configuration,
    finish,
    joined,
    model_pool,
    results,
    samples_of,
)

Topology = Annotated[str | None, typer.Option("--topology", "-t", help="A TPU slice: v5e-8, v5e:2x4, v5p-32.")]
Family = Annotated[str | None, typer.Option("--search", help="A TPU family: its smallest slice that fits is found.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")]
Coordinator = Annotated[str | None, typer.Option("--coordinator", metavar="HOST:PORT", help="Address of process 0.")]
Processes = Annotated[int | None, typer.Option("--processes", metavar="N", help="How many processes work together.")]
Process = Annotated[int | None, typer.Option("--process", metavar="I", help="Which of them this is, from 0.")]


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
    from looptool_jax.parallel import compilation, processes
    from looptool_jax.report import tables
    from looptool_jax.report.html import write_report

    cfg = load_config(config, overrides or ())
    with joined(cfg, quiet, coordinator, count, index) as console:
        processes.by_first(lambda: keep_config(cfg))
        processes.check_shared(cfg.run_dir)
        console.say(
            f"looptool run --config {config}: {cfg.rounds} round{'s' * (cfg.rounds > 1)} in {cfg.run_dir} "
            "(rerun to resume)"
        )
        if not compilation.user_cache().exists():
            console.say("programs are compiled on their first use and kept: this run starts slower than later ones")
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

    cfg = configuration(config, overrides, model)
    samples = samples_of(data)
    with results(out, "probe", cfg, [data]) as console:
        policy = model_pool(cfg, out).lend(cfg.policy)
        metrics = stage.probe(policy, samples, cfg.probe, cfg.reward, out, console)
    finish(metrics, out)


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

    cfg = configuration(config, overrides, judge_model=model)
    samples = samples_of(data)
    rows = read_records(probes, Probe.from_json, "probe")
    with results(out, "judge", cfg, [data, probes], round_) as console:
        lent = model_pool(cfg, out).lend_chat(cfg.judge_model) if cfg.judge.enabled else None
        metrics = stage.judge(lent, samples, rows, cfg.seed, round_, cfg.judge, out, console)
    finish(metrics, out)


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

    cfg = configuration(config, overrides, judge_model=model)
    seeds = read_records(errors, ErrorSeed.from_json, "error seed")
    with results(out, "expand", cfg, [errors], round_) as console:
        pool = model_pool(cfg, out)
        generator = pool.lend_chat(cfg.generator_model or cfg.judge_model)
        verifier = pool.lend_chat(cfg.judge_model) if cfg.expand.verify != "rules" else None
        limit = (pool.lend(cfg.policy), cfg.train.answers.prompt_tokens)
        metrics = stage.expand(generator, verifier, seeds, limit, cfg.seed, round_, cfg.expand, out, console)
    finish(metrics, out)


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
    finish(Runner(cfg, Console()).compose_to(round_, out), out)


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
    from looptool_jax.loop.run_config import flat
    from looptool_jax.loop.tracking import tracked

    cfg = configuration(config, overrides, model)
    samples = samples_of(data)
    with results(out, "train", cfg, [data], round_) as console, tracked(console, out, cfg.tracking, flat(asdict(cfg))):
        policy = model_pool(cfg, out).lend(cfg.policy)
        metrics = stage.train(policy, samples, cfg.train, cfg.reward, cfg.seed, round_, out, console)
    finish(metrics, out)


@app.command()
def warmup(
    out: Out,
    data: Annotated[str | None, typer.Option("--data", "-d", help="Samples to train a model on.")] = None,
    config: Config = "quickstart",
    model: Model = None,
    overrides: Overrides = None,
) -> None:
    """Supervised training: a model on the targets of samples; without --data, the embedded model from nothing, also in
    other sizes.

    \b
    looptool warmup --data seeds.jsonl --model ./SmolLM2-135M-Instruct --out warm policy.format=smollm2
    looptool warmup --out nano
    looptool warmup --out large hidden_size=256 intermediate_size=768 num_heads=8 num_kv_heads=4
    """
    from looptool_jax.config import ConfigError
    from looptool_jax.data.store import is_url, join, lock_directory
    from looptool_jax.loop import warmup as stage
    from looptool_jax.loop.console import Console

    if data is None:
        console = Console()
        if model or config != "quickstart":
            raise ConfigError(
                "warmup: the embedded model is made from nothing; give --data to train another on samples"
            )
        recipe = stage.NanoConfig.with_sizes(overrides or ())
        if is_url(out):
            raise ConfigError(f"--out: {out}: the embedded model is built in a local folder; choose one, and copy it")
        with lock_directory(out), console.stage("warmup"):
            stage.train_nano(recipe, out, lambda row: console.say(str(row)))
        return
    from looptool_jax.models.hf import save_pretrained

    cfg = configuration(config, overrides, model)
    samples = samples_of(data)
    with results(out, "warmup", cfg, [data]) as console:
        policy = model_pool(cfg, out).lend(cfg.policy)
        settings = cfg.warmup or stage.WarmupConfig()
        lm, _ = stage.sft_warmup(
            policy.lm, samples, settings, join(out, "checkpoints"), lambda row: console.say(str(row)), policy.thinking
        )
        save_pretrained(lm.params, lm.cfg, join(out, "policy"), lm.folder)


@app.command()
def report(run_dir: Annotated[str, typer.Argument(help="Run directory.")]) -> None:
    """Write the HTML report of a run, finished or not.

    \b
    looptool report runs/quickstart
    """
    from looptool_jax.report.html import write_report

    print(write_report(run_dir))
