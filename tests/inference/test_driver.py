"""JetStream's threaded Driver serves the engine: the same answers as the batch loop."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_jetstreams_driver_serves_the_engine():
    here = Path(__file__).resolve()
    environment = os.environ | {"PYTHONPATH": str(here.parents[2])}
    done = subprocess.run(
        [sys.executable, str(here.parent / "drive.py")], env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "served 120 tokens" in done.stdout, done.stdout[-2000:]
