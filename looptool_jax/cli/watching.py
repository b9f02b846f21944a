"""Watching runs: status."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Annotated, Any

import typer

from looptool_jax.cli.common import app


@app.command()
def status(
    run_dir: Annotated[str, typer.Argument(help="Run directory, local or gs://.")],
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Show it anew until the run ends.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a look, for programs.")] = False,
) -> None:
    """How a run is: the stage at work, time left, metrics, disk and memory, and whether it runs at all.

    From another terminal or machine too. It takes no lock and writes nothing.

    \b
    looptool status runs/quickstart
    looptool status gs://bucket/run --watch
    """
    from rich.console import Console
    from rich.live import Live

    from looptool_jax.report.status import status_table

    console = Console()
    if watch and console.is_terminal and not as_json:
        with Live(console=console, auto_refresh=False) as live:
            for found in _looks(run_dir, watch):
                live.update(status_table(found), refresh=True)
        return
    for found in _looks(run_dir, watch):
        if as_json:
            print(json.dumps(found), flush=True)
        else:
            console.print(status_table(found))


def _looks(run_dir: str, watch: bool) -> Iterator[dict[str, Any]]:
    """The status now, and with `watch` again and again until the run ends."""
    from looptool_jax.data.files import is_url, write_files
    from looptool_jax.report.status import read_status

    write_files(False)
    while True:
        found = read_status(run_dir)
        yield found
        if not watch or found["state"] not in ("running", "quiet"):
            return
        time.sleep(30.0 if is_url(run_dir) else 5.0)
