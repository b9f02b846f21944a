"""What a run prints: a live bar in a terminal, one line a stage elsewhere."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console as RichConsole
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

LINE_SECONDS = 30.0
PIPE_WIDTH = 140  # of tables where no terminal says how wide it is
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


def shown(text: str) -> str:
    """Text of data as a terminal may have it: what would steer the terminal, and what has no UTF-8, is escaped."""
    return _CONTROL.sub(lambda found: repr(found[0])[1:-1], text)


class Console:
    """Progress of the stage at work: items done, tokens generated, and what the stage says of itself.

    Off a terminal it prints a line when a stage starts and ends, and at most one every 30 seconds between.
    """

    def __init__(self, quiet: bool = False) -> None:
        width = None if sys.stdout.isatty() else PIPE_WIDTH
        self.rich = RichConsole(file=sys.stdout, width=width, highlight=False)
        self.quiet = quiet
        self.live = self.rich.is_terminal and not quiet
        self._bar: Progress | None = None
        self._begin("")

    def say(self, text: str) -> None:
        """One line for the user."""
        if not self.quiet:
            self.rich.print(shown(text), markup=False, soft_wrap=True)

    def table(self, table: Table) -> None:
        if not self.quiet:
            self.rich.print(table)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Everything reported inside belongs to this stage."""
        self._begin(name)
        if not self.live:
            self.say(f"{name}: started")
            yield
            return
        columns = (
            TextColumn("{task.description:<16}"), BarColumn(bar_width=24), MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"), TimeElapsedColumn(), TimeRemainingColumn(),
        )  # fmt: skip
        with Progress(*columns, console=self.rich, transient=True) as self._bar:
            self._bar.add_task(name, total=None, note="")
            try:
                yield
            finally:
                self._bar = None

    def expect(self, total: int) -> None:
        """The stage has `total` items to work on."""
        self._total = total
        self._show()

    def advance(self, count: int = 1, **figures: float) -> None:
        """`count` more items are done; `figures` (reward, loss, ...) are shown beside."""
        self._done += count
        self._figures |= figures
        self._show()

    def prompts(self, count: int) -> None:
        """Prompts of `count` more tokens were read."""
        self.prompt_token_count += count

    def tokens(self, count: int) -> None:
        """`count` more tokens were generated."""
        self.token_count += count
        self._show()

    @property
    def seconds(self) -> float:
        """Since the stage began in this process."""
        return time.monotonic() - self._started

    def _begin(self, name: str) -> None:
        self._name, self._total, self._done = name, 0, 0
        self.token_count = self.prompt_token_count = 0
        self._figures: dict[str, Any] = {}
        self._started = self._printed = time.monotonic()

    def _note(self) -> str:
        parts = [f"{self.token_count / max(1e-9, self.seconds):,.0f} tok/s"] if self.token_count else []
        return "  ".join(parts + [f"{name} {value:.3f}" for name, value in self._figures.items()])

    def _show(self) -> None:
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], total=self._total or None, completed=self._done, note=self._note())
        elif time.monotonic() - self._printed > LINE_SECONDS:
            self._printed = time.monotonic()
            rest = self.seconds / max(1, self._done) * (self._total - self._done)
            eta = f", about {rest:.0f} s left" if self._done else ""
            self.say(f"{self._name}: {self._done}/{self._total} {self._note()}{eta}")
