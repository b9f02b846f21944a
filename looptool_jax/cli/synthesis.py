"""`looptool synthesize`: seed data from language models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from looptool_jax.cli.common import Config, Model, Out, Overrides, app, configuration, finish, model_pool, results

if TYPE_CHECKING:
    from looptool_jax.loop.run_config import RunConfig

Count = Annotated[int | None, typer.Option("--count", "-n", min=1, help="How many; default: synthesis.count.")]

synthesize = typer.Typer(rich_markup_mode=None, no_args_is_help=True)
app.add_typer(synthesize, name="synthesize")


@synthesize.callback()
def _synthesize() -> None:
    """Seed data from language models: trees of a domain, API documents, simulated dialogues.

    generator_model writes, or judge_model where there is none; judge_model verifies, and --model names its path.
    Settings: synthesis.*

    \b
    looptool synthesize trees --domain "Rail travel" --out trees
    looptool synthesize apis --trees trees/trees.yaml --count 2000 --out apis
    looptool synthesize dialogues --tools apis/tools.jsonl --count 3000 --out seeds
    looptool run --config paper_8b data.source=seeds data.format=samples
    """


@synthesize.command("trees")
def synthesize_trees(
    domain: Annotated[str, typer.Option("--domain", help="What the functions are about.")],
    out: Out,
    config: Config = "synthesis",
    model: Model = None,
    overrides: Overrides = None,
) -> None:
    """Draft the context tree and the constraint tree of a domain; OUT/trees.yaml is yours to edit.

    \b
    looptool synthesize trees --domain "Rail travel" --out trees
    """
    from looptool_jax.config import ConfigError
    from looptool_jax.loop.synthesis import trees as stage

    if not domain.strip():
        raise ConfigError("--domain: names nothing; say what the functions are about")
    cfg = configuration(config, overrides, judge_model=model)
    with results(out, f"synthesize trees of {domain.strip()}", cfg, []) as console:
        generator = model_pool(cfg, out).lend_chat(cfg.generator_model or cfg.judge_model)
        metrics = stage.draft_trees(generator, domain.strip(), cfg.seed, cfg.synthesis, out, console)
    finish(metrics, out)


@synthesize.command("apis")
def synthesize_apis(
    trees: Annotated[list[str], typer.Option("--trees", help="Trees of a domain: a file, or a shipped name; several.")],
    out: Out,
    count: Count = None,
    config: Config = "synthesis",
    model: Model = None,
    overrides: Overrides = None,
) -> None:
    """API documents from the trees: one leaf path of each makes a prompt, rules check what is written.

    \b
    looptool synthesize apis --trees travel --count 500 --model /models/Qwen3-32B --out apis
    looptool synthesize apis --trees rail.yaml --trees banking.yaml --config mine.yaml --out apis
    """
    from looptool_jax.config import find_trees
    from looptool_jax.loop.synthesis import apis as stage
    from looptool_jax.loop.synthesis.trees import read_trees

    cfg = _counted(config, overrides, model, count)
    files = [find_trees(name) for name in trees]
    read = [read_trees(file) for file in files]
    with results(out, "synthesize apis", cfg, files) as console:
        generator = model_pool(cfg, out).lend_chat(cfg.generator_model or cfg.judge_model)
        metrics = stage.synthesize_apis(generator, read, cfg.seed, cfg.synthesis, out, console)
    finish(metrics, out)


@synthesize.command("dialogues")
def synthesize_dialogues(
    tools: Annotated[str, typer.Option("--tools", help="A file of tool documents, or world.")],
    out: Out,
    count: Count = None,
    config: Config = "synthesis",
    model: Model = None,
    overrides: Overrides = None,
) -> None:
    """Dialogues over the tools, simulated and verified; OUT is a sample set, one sample an assistant step.

    The file is OpenAI's tool list (JSON or JSON lines), or tools.jsonl of "synthesize apis". "world" stands for the
    procedural tools, whose calls are executed.

    \b
    looptool synthesize dialogues --tools apis/tools.jsonl --count 3000 --out seeds
    looptool synthesize dialogues --tools world --count 100 --config mine.yaml --out seeds synthesis.most_turns=6
    """
    from looptool_jax.loop.synthesis import simulate as stage
    from looptool_jax.loop.synthesis.tools import read_tools, world_tools

    cfg = _counted(config, overrides, model, count)
    entries = world_tools() if tools == "world" else read_tools(tools)
    with results(out, "synthesize dialogues", cfg, [] if tools == "world" else [tools]) as console:
        pool = model_pool(cfg, out)
        generator = pool.lend_chat(cfg.generator_model or cfg.judge_model)
        judge = pool.lend_chat(cfg.judge_model) if cfg.synthesis.verify != "rules" else None
        metrics = stage.synthesize_dialogues(generator, judge, entries, cfg.seed, cfg.synthesis, out, console)
    finish(metrics, out)


def _counted(config: str, overrides: list[str] | None, model: str | None, count: int | None) -> RunConfig:
    """The configuration, with the count that has an option of its own."""
    named = [] if count is None else [f"synthesis.count={count}"]
    return configuration(config, [*named, *(overrides or ())], judge_model=model)
