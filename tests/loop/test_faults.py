"""Faults from outside in the middle of a run: one clear line, nothing lost, and the same command goes on afterwards."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

MAIN = "from looptool_jax.cli import main; main()"


def start(run_dir: Path, *overrides: str) -> subprocess.Popen[str]:
    env = {**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", MAIN, "run", "--config", "micro", f"run_dir={run_dir}", *overrides]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)


def error_line(process: subprocess.Popen[str]) -> str:
    _, stderr = process.communicate()
    lines = [line for line in stderr.splitlines() if line.strip()]
    assert process.returncode == 2 and len(lines) == 1, stderr
    return lines[0]


def kill_after_first_checkpoint(run_dir: Path) -> Path:
    """Run until the first training checkpoint is there, kill the process, and return the checkpoint's folder."""
    process = start(run_dir)
    checkpoints = run_dir / "round-1/train/checkpoints"
    while process.poll() is None:
        found = [folder for folder in checkpoints.glob("step_????????") if (folder / "_CHECKPOINT_METADATA").exists()]
        if found:
            process.send_signal(signal.SIGKILL)
            process.communicate()
            return found[0]
        time.sleep(0.02)
    raise AssertionError(process.communicate())


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_full_disk(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", disk], capture_output=True)
    if mounted.returncode:
        pytest.skip("this machine does not let the tests mount a small disk")
    try:
        line = error_line(start(disk / "run"))
        assert "space" in line.lower(), line
        done = json.loads((disk / "run/manifest.json").read_text())["stages"]
        assert "seed" in done
        subprocess.run(["mount", "-o", "remount,size=200m", disk], check=True)
        process = start(disk / "run")
        assert process.communicate() and process.returncode == 0
        assert json.loads((disk / "run/manifest.json").read_text())["stages"]["seed"] == done["seed"]
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_corrupt_checkpoint(tmp_path):
    folder = kill_after_first_checkpoint(tmp_path / "run")
    largest = max((file for file in folder.rglob("*") if file.is_file()), key=lambda file: file.stat().st_size)
    damaged = bytearray(largest.read_bytes())
    damaged[len(damaged) // 2] ^= 0xFF
    largest.write_bytes(damaged)
    before = (tmp_path / "run/manifest.json").read_bytes()
    line = error_line(start(tmp_path / "run"))
    assert "checkpoint" in line and "damaged" in line and str(folder) in line
    assert (tmp_path / "run/manifest.json").read_bytes() == before


def test_a_changed_artifact(tmp_path):
    run = tmp_path / "run"
    process = start(run)
    while process.poll() is None and not (run / "eval-0/results.jsonl").exists():
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    with open(run / "seed/pool.jsonl", "a") as file:
        file.write("{}\n")
    assert "seed/pool.jsonl" in error_line(start(run))
