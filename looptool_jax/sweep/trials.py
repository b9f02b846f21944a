"""The trials of a sweep as processes: each is a `looptool run` of its own, so that one that fails ends nobody else."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from looptool_jax.config import check_kept, keep_config
from looptool_jax.data.store import DataError, exists, is_url, join, read_bytes, write_bytes
from looptool_jax.loop.console import Console
from looptool_jax.loop.manifest import NAME as MANIFEST
from looptool_jax.loop.run_config import RunConfig
from looptool_jax.loop.runner import is_finished
from looptool_jax.sweep.common import donor, take_over
from looptool_jax.sweep.figures import read_figures
from looptool_jax.sweep.order import Order, Task
from looptool_jax.sweep.space import Sweep, Trial

PROGRAM = (sys.executable, "-P", "-m", "looptool_jax.cli")
POLL = 0.1  # seconds between two looks at the processes
SEEN_SECONDS = 30  # in which a process that is not the first sees what the first one wrote


@dataclass(frozen=True)
class Place:
    """Which of the processes that work together this one is, and the flags by which its trials find their peers."""

    index: int = 0
    several: bool = False
    flags: Sequence[str] = ()

    @property
    def first(self) -> bool:
        return self.index == 0


class Stop:
    """Whether to stop, and why: "interrupted" (Ctrl-C) or "preempted" (SIGTERM, here or in a trial); "" until then."""

    def __init__(self) -> None:
        self.why = ""
        self.told = 0  # how often
        self._event = threading.Event()

    def set(self, why: str) -> None:
        self.why = self.why or why
        self.told += 1
        self._event.set()

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Signals are noted while trials run. Ctrl-C of a job in the background stays ignored."""

        def note(number: int, frame: FrameType | None) -> None:
            self.set("preempted" if number == signal.SIGTERM else "interrupted")

        background = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        numbers = [signal.SIGTERM] if background else [signal.SIGTERM, signal.SIGINT]
        before = {number: signal.signal(number, note) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class Trials:
    """Runs the trials of a sweep in the folder `out`, at most `parallel` at a time.

    failures: the last line of every trial that failed, by its name. on_end: called behind every trial.
    """

    def __init__(self, sweep: Sweep, out: str, console: Console, parallel: int = 1, place: Place | None = None) -> None:
        self.sweep, self.out, self.console, self.parallel = sweep, out, console, parallel
        self.place = place or Place()
        self.failures: dict[str, str] = {}
        self.on_end: Callable[[], object] = lambda: None
        self.stop = Stop()
        self._running: dict[_Process, Task] = {}
        self._configs: dict[Task, RunConfig] = {}

    def run_dir(self, trial: Trial) -> str:
        return join(self.out, "trials", trial.name)

    def config(self, task: Task) -> RunConfig:
        """Raises ConfigError."""
        if task not in self._configs:
            self._configs[task] = self.sweep.trial_config(task.trial, self.run_dir(task.trial), task.rounds)
        return self._configs[task]

    def command(self, task: Task) -> list[str]:
        """The arguments of `looptool` behind which a trial's run is."""
        rounds = [] if task.rounds is None else [f"rounds={task.rounds}"]
        overrides = [*task.trial.overrides, *rounds, f"run_dir={self.run_dir(task.trial)}"]
        return ["run", "--config", self.sweep.config, *overrides, *self.place.flags]

    def work(self, order: Order) -> None:
        """Run what the order has until it has nothing more, or this process is told to stop; then trials are told as
        a run is (SIGTERM), and end behind a commit."""
        number, told = 0, 0
        with self.stop.listening():
            try:
                while True:
                    while len(self._running) < self.parallel and not self.stop.why and (task := order.take()):
                        number += 1
                        self._start(task, order, f"{number}/{order.total} {_name(task)}")
                    if not self._running:
                        if self.stop.why or task is None:
                            return
                        continue
                    if self.stop.told > told:
                        self._tell(signal.SIGTERM if not told else signal.SIGKILL)  # who insists does not wait
                        told = self.stop.told
                    self._look(order)
                    time.sleep(POLL)
            finally:
                self._tell(signal.SIGTERM)
                for process in self._running:
                    process.wait()

    def _start(self, task: Task, order: Order, label: str) -> None:
        """Start a trial, unless it is done already or cannot be."""
        try:
            done = self._is_finished(task)
        except ValueError as error:
            self._failed(task, order, label, str(error))
            return
        if done:
            order.ended(task, True)
            self.console.say(f"{label}: done already{self._shown(task)}")
            return
        self.console.say(f"{label}: started{self._taken_over(task)}")
        self._running[_Process([*PROGRAM, *self.command(task)], self._log(task.trial), label)] = task

    def _taken_over(self, task: Task) -> str:
        """Give a trial that has not begun the stages that another one of the sweep has done for it; says so.

        Not of several processes: the trials of the others are started already, and wait for minutes only.
        """
        folder = self.run_dir(task.trial)
        if self.sweep.search or self.place.several or exists(join(folder, MANIFEST)):
            return ""
        others = {other: self.run_dir(other) for other in self.sweep.trials()}
        try:
            if (found := donor(task.trial, self.config(task), others)) is None:
                return ""
            other, stages = found
            keep_config(self.config(task))  # in place of what a trial that was killed in its first stage had
            take_over(others[other], folder, stages)
        except ValueError as error:
            return f", without what others have done: {error}"
        return f" behind {stages[-1]}, as {other.name} has done it"

    def _look(self, order: Order) -> None:
        """Take note of the trials that have ended."""
        for process, task in list(self._running.items()):
            status = process.status()
            if status is None:
                continue
            del self._running[process]
            last = process.close()
            try:
                finished = status == 0 and self._is_finished(task, patient=self.place.several and not self.stop.why)
            except ValueError as error:
                status, finished, last = 2, False, str(error)
            if finished:
                order.ended(task, True)
                self.failures.pop(task.trial.name, None)
                self.console.say(f"{process.label}: finished in {process.seconds:.0f} s{self._shown(task)}")
            elif status == 0 or (self.stop.why and status in (-signal.SIGTERM, -signal.SIGKILL)):
                self.stop.set("preempted")  # the trial was told so; its machine, or that of a peer, is wanted back
            else:
                how = f"killed by {signal.Signals(-status).name}, after: " if status < 0 else ""
                self._failed(task, order, process.label, f"{how}{last or f'status {status}, without a word'}")
            self.on_end()

    def _failed(self, task: Task, order: Order, label: str, reason: str) -> None:
        self.failures[task.trial.name] = reason
        self.console.say(f"{label}: failed: {reason}")
        order.ended(task, False)

    def _is_finished(self, task: Task, patient: bool = False) -> bool:
        """Raises ConfigError where the directory holds a run with other settings; DataError."""
        cfg = self.config(task)
        late = time.monotonic() + SEEN_SECONDS
        while not is_finished(cfg):
            if not patient or time.monotonic() > late:
                return False
            time.sleep(1)
        check_kept(cfg)
        return True

    def _shown(self, task: Task) -> str:
        found = read_figures(self.run_dir(task.trial))
        before, after = found.accuracy(0), found.accuracy(found.last)
        return "" if before is None or after is None else f"  held-out {100 * before:.1f} % → {100 * after:.1f} %"

    def _log(self, trial: Trial) -> str:
        """Where the output of a trial goes; that of processes beside the first, which print errors alone, nowhere."""
        return join(self.out, "logs", f"{trial.name}.log") if self.place.first else ""

    def _tell(self, number: int) -> None:
        for process in self._running:
            process.send(number)


class _Process:
    """A running trial. Its output goes to a local file, and is copied at its end where the sweep lies elsewhere."""

    def __init__(self, command: Sequence[str], log: str, label: str) -> None:
        self.label, self._log = label, log
        local = log and not is_url(log)
        if local:
            Path(log.removeprefix("file://")).parent.mkdir(parents=True, exist_ok=True)
        self._output = open(log.removeprefix("file://"), "a+b") if local else tempfile.TemporaryFile()  # noqa: SIM115
        self._begun = self._output.seek(0, os.SEEK_END)
        self._since = time.monotonic()
        self.seconds = 0.0
        # A trial does not hear a terminal's Ctrl-C: it is this process that tells it to stop.
        listens = signal.getsignal(signal.SIGINT)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=self._output, stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
            )  # fmt: skip
        finally:
            signal.signal(signal.SIGINT, listens)

    def status(self) -> int | None:
        """Exit status; None while it runs."""
        status = self._process.poll()
        if status is not None:
            self.seconds = time.monotonic() - self._since
        return status

    def send(self, number: int) -> None:
        self._process.send_signal(number)

    def wait(self) -> None:
        self._process.wait()

    def close(self) -> str:
        """The last line that it printed; its output is where it belongs."""
        self._output.seek(self._begun)
        text = self._output.read()
        self._output.close()
        if is_url(self._log):
            with contextlib.suppress(DataError):
                text = read_bytes(self._log) + text
            write_bytes(self._log, text)
        lines = [line.strip() for line in text.decode("utf-8", "replace").splitlines() if line.strip()]
        return lines[-1] if lines else ""


def _name(task: Task) -> str:
    return task.trial.name if task.rounds is None else f"{task.trial.name} to round {task.rounds}"
