"""The commands. Each loads what it needs when it runs, so that `--help` answers at once."""

from __future__ import annotations

import logging
import traceback

from looptool_jax.cli import closed_loop, data, evals, models, sweeps, synthesis, watching
from looptool_jax.cli.common import app, end

__all__ = [
    "app",
    "closed_loop",
    "data",
    "evals",
    "main",
    "models",
    "sweeps",
    "synthesis",
    "watching",
]  # each module adds its commands to `app`


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
        if done.code == 130:
            end("looptool: interrupted", 130)
        if done.code == 0:
            end("", 0)  # what is compiled in the background is not waited for
        raise
    except Exception as error:
        ours = type(error).__module__.startswith("looptool_jax.") and isinstance(error, ValueError)
        if ours or isinstance(error, OSError):
            end(f"looptool: {' '.join(str(error).split())}", 2)
        end(traceback.format_exc().rstrip(), 1)
