"""The heartbeat of a run: `status.json` in its directory, for `looptool status`.

It is written in a thread of its own, at most every INTERVAL seconds and only where the run got further since: its age
is how long nothing has moved. It is no artifact. What goes wrong with it is no business of the run.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import socket
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax

from looptool_jax.data.files import writes_files
from looptool_jax.data.store import DataError, is_url, join, parse_json, read_text, write_text
from looptool_jax.loop.console import HEARTBEAT, Console, StageProgress, Watcher
from looptool_jax.parallel.processes import Preempted

INTERVAL, INTERVAL_URL = 10.0, 30.0  # seconds
RECENT = 20  # training steps
FAREWELL = 10.0  # seconds that the last write may take

_log = logging.getLogger(__name__)


class Heartbeat(Watcher):
    """Times are seconds since 1970 by this machine's clock."""

    def __init__(self, run_dir: str, plan: Sequence[str]) -> None:
        """plan: the names of all stages in order."""
        self.path = join(run_dir, HEARTBEAT)
        self._interval = INTERVAL_URL if is_url(run_dir) else INTERVAL
        self._stage: StageProgress | None = None
        self._rewards: deque[tuple[int, float]] = deque(maxlen=RECENT)
        self._warnings = _Warnings()
        self._error = _last_error(self.path)
        self._run = {
            "host": socket.gethostname(), "pid": os.getpid(), "processes": jax.process_count(),
            "devices": jax.device_count(), "since": time.time(), "plan": list(plan),
        }  # fmt: skip
        self._state, self._moved = "running", time.time()
        self._news, self._ended = threading.Event(), threading.Event()
        self._news.set()
        logging.getLogger("looptool_jax").addHandler(self._warnings)
        self._thread = threading.Thread(target=self._write_on, name="heartbeat", daemon=True)
        self._thread.start()

    def progress(self, stage: StageProgress) -> None:
        self._stage, self._moved = stage, time.time()
        self._news.set()

    def metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        if "train/reward" in metrics:
            self._rewards.append((step, metrics["train/reward"]))

    def end(self, state: str, error: str = "") -> None:
        """The last write. state: finished, preempted, stopped or failed."""
        self._state, self._moved = state, time.time()
        if error:
            where = self._stage.name if self._stage else ""
            self._error = {"time": self._moved, "stage": where, "text": " ".join(error.split())[:500]}
        logging.getLogger("looptool_jax").removeHandler(self._warnings)
        self._ended.set()
        self._news.set()
        self._thread.join(FAREWELL)

    def _write_on(self) -> None:
        try:
            while not self._ended.is_set():
                self._news.wait()
                self._news.clear()
                self._write()
                self._ended.wait(self._interval)
            self._write()
        except Exception as error:
            _log.warning("%s is not written any longer (%s: %s)", self.path, type(error).__name__, error)

    def _write(self) -> None:
        with contextlib.suppress(DataError):  # the store is away, the disk is full: what the run writes will say so
            write_text(self.path, json.dumps(self._record(), indent=1) + "\n")

    def _record(self) -> dict[str, Any]:
        stage = self._stage
        return {
            "state": self._state,
            "moved": self._moved,
            "run": self._run,
            "stage": _stage(stage) if stage else None,
            "rewards": list(self._rewards),
            "memory": {"devices": _device_memory(), "host": _host_memory()},
            "warnings": list(self._warnings.lines),
            "error": self._error,
        }


@contextlib.contextmanager
def beating(console: Console, run_dir: str, plan: Sequence[str]) -> Iterator[None]:
    """The heartbeat of a run for as long as it works, and how it ends; of several processes, in the one that writes."""
    if not writes_files():
        yield
        return
    heartbeat = Heartbeat(run_dir, plan)
    console.watchers.append(heartbeat)
    state, error = "failed", ""
    try:
        yield
        state = "finished"
    except Preempted:
        state = "preempted"
        raise
    except KeyboardInterrupt:
        state = "stopped"
        raise
    except BaseException as failure:
        error = str(failure) if isinstance(failure, ValueError | OSError) else f"{type(failure).__name__}: {failure}"
        raise
    finally:
        console.watchers.remove(heartbeat)
        heartbeat.end(state, error)


def _stage(stage: StageProgress) -> dict[str, Any]:
    """Figures that are no numbers, as the loss of a training that went astray, are null, as JSON has none such."""
    figures = {name: value if math.isfinite(value) else None for name, value in stage.figures.items()}
    return asdict(stage) | {"figures": figures, "seconds_left": stage.seconds_left}


class _Warnings(logging.Handler):
    """The last warnings of this program."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: deque[dict[str, Any]] = deque(maxlen=5)

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append({"time": record.created, "text": " ".join(record.getMessage().split())[:500]})


def _last_error(path: str) -> dict[str, Any] | None:
    """What an earlier process of the run ended with."""
    try:
        return parse_json(read_text(path))["error"]
    except (DataError, ValueError, KeyError, TypeError):
        return None


def _device_memory() -> list[dict[str, Any]]:
    """Bytes in use, at most so far, and in all, of the devices of this process that tell."""
    stats = [(device, device.memory_stats()) for device in jax.local_devices()]
    return [
        {
            "device": str(device.id), "kind": device.device_kind, "used": found["bytes_in_use"],
            "peak": found.get("peak_bytes_in_use"), "limit": found.get("bytes_limit"),
        }
        for device, found in stats
        if found
    ]  # fmt: skip


def _host_memory() -> dict[str, int]:
    """Bytes: of this process, free for use on this machine, and in all; what Linux tells."""
    try:
        status, machine = Path("/proc/self/status").read_text(), Path("/proc/meminfo").read_text()
    except OSError:
        return {}
    names = {"VmRSS:": "process", "MemAvailable:": "available", "MemTotal:": "total"}
    rows = [line.split() for line in (status + machine).splitlines()]
    return {names[row[0]]: 1024 * int(row[1]) for row in rows if row and row[0] in names}
