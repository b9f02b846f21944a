"""What the commands share: options, the configuration, start-up as one process of several, and the last line."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

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
Data = Annotated[
    str, typer.Option("--data", "-d", help="Samples: a .jsonl file, a folder with a sample set, or tfds:NAME.")
]
Model = Annotated[
    str | None, typer.Option("--model", "-m", help="Model folder (also gs://), hub id, GGUF file, or nano/policy.")
]
Round = Annotated[int, typer.Option("--round", help="Round number, for random draws and lineage.")]


def end(message: str, status: int) -> None:
    """Ends the process with a last line on standard error."""
    if message:
        print(message, file=sys.stderr, flush=True)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # an ordinary exit waits for other processes, and threads that were cut off write tracebacks


def configuration(
    config: str, overrides: list[str] | None, model: str | None = None, judge_model: str | None = None
) -> RunConfig:
    """A configuration with overrides, and with the models that have options of their own."""
    from looptool_jax.config import load_config

    named = [f"policy.path={model}"] if model else []
    named += [f"judge_model.path={judge_model}"] if judge_model else []
    return load_config(config, [*named, *(overrides or ())])


def model_pool(cfg: RunConfig, out: str) -> ModelPool:
    """The models of a command; what they cache lies in its folder."""
    from looptool_jax.loop.pool import ModelPool

    return ModelPool(cfg.mesh, out)


@contextmanager
def joined(cfg: RunConfig, quiet: bool = False, *process: Any) -> Iterator[Console]:
    """Start-up of everything that computes, as one process of several or alone; only the first one prints."""
    from looptool_jax.loop.console import Console
    from looptool_jax.parallel import processes

    try:
        with processes.joined(*process):
            processes.meet("the configuration", asdict(cfg))
            yield Console(quiet or not processes.is_first())
    except KeyboardInterrupt:  # here, for typer would end without a word
        end("looptool: interrupted; give the same command again to continue", 130)


@contextmanager
def results(out: str, command: str, cfg: RunConfig, data: list[str], round_: int = 1) -> Iterator[Console]:
    """The folder is this command's alone, and what lies there already is of the same command."""
    from looptool_jax.config import keep_command
    from looptool_jax.data.store import lock_directory
    from looptool_jax.parallel import processes

    with joined(cfg) as console, lock_directory(out):
        processes.by_first(lambda: keep_command(out, command, cfg, data, round_))
        processes.check_shared(out)
        with console.stage(command):
            yield console


def samples_of(data: str) -> list[Sample]:
    """The samples of a file, a folder or a data set (`tfds:`, `hf:`). Raises DataError, where there are none too."""
    from looptool_jax.data.importers import read_data_set
    from looptool_jax.data.importers.data_sets import is_data_set
    from looptool_jax.data.store import DataError, read_samples

    samples = list(read_data_set(data) if is_data_set(data) else read_samples(data))
    if not samples:
        raise DataError(f"{data}: holds no samples")
    return samples


def check_apart(read: str, written: str) -> None:
    """Raises DataError where a command would write over the file that it reads."""
    from looptool_jax.data.files import DataError, is_url, local_path

    if read == written or (not is_url(written) and local_path(read).resolve() == local_path(written).resolve()):
        raise DataError(f"{written}: this is the file that is read; name another one")


def finish(metrics: dict, out: str) -> None:
    """The last line of a stage: its headline, and where its results lie."""
    from looptool_jax.loop.runner import headline
    from looptool_jax.parallel import processes

    if processes.is_first():
        print(f"{headline(metrics)}  -> {out}")
