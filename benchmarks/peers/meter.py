"""Wall time and memory of repeated work, on Linux. Standard library only: every environment imports it."""

from __future__ import annotations

import ctypes
import gc
import json
import time
from pathlib import Path


class Meter:
    """Seconds between `start` and `stop`, and the resident set, from `warm` on: what was compiled or allocated once
    lies before it."""

    def __init__(self, pid: int | str = "self") -> None:
        self.pid, self.seconds, self.before, self.started = pid, [], 0, 0.0

    def warm(self) -> None:
        gc.collect()
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path(f"/proc/{self.pid}/clear_refs").write_text("5")  # the peak begins anew
        self.before, self.seconds = self._status("VmRSS"), []

    def start(self) -> None:
        self.started = time.perf_counter()

    def stop(self) -> None:
        self.seconds.append(time.perf_counter() - self.started)

    def report(self, **found: object) -> None:
        """One line of JSON, the last of the process."""
        memory = {"before_bytes": self.before, "peak_bytes": self._status("VmHWM")}
        print(json.dumps({"seconds": self.seconds, **memory, **found}), flush=True)

    def _status(self, field: str) -> int:
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith(field)).split()[1]) * 1024
