"""Runs on `gs://` against a real server: outages, processes that die, and the same artifacts as a local run."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from looptool_jax.data import store

MAIN = "from looptool_jax.cli import main; main()"
SMALL = ("rounds=1", "data.heldout=0")


def start(run_dir: object, *overrides: str, **environment: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", MAIN, "run", "--config", "micro", f"run_dir={run_dir}", *overrides]
    env = {**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu", **environment}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)


def end(process: subprocess.Popen[str]) -> str:
    """Its output, when it has ended well."""
    out, err = process.communicate()
    assert process.returncode == 0, err
    return out


def wait_for(process: subprocess.Popen[str], what) -> None:
    while not what():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)


def outage(proxy, seconds: float) -> None:
    before = proxy.refused
    proxy.fail(True)
    deadline = time.monotonic() + 60
    while proxy.refused == before and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(seconds)
    proxy.fail(False)
    assert proxy.refused > before, "nothing was asked of the store in the outage"


def assert_same_artifacts(run_dir: str, local: Path) -> None:
    assert store.read_bytes(f"{run_dir}/manifest.json") == (local / "manifest.json").read_bytes()
    recorded = json.loads((local / "manifest.json").read_text())["stages"].values()
    files = {file: digest for stage in recorded for file, digest in stage["outputs"].items()}
    for file, digest in files.items():
        assert store.file_sha256(f"{run_dir}/{file}") == digest
        assert store.read_bytes(f"{run_dir}/{file}") == (local / file).read_bytes()
    beside = {"config.yaml", "manifest.json", "report.html", "status.json", "environment.jsonl/000000.json"} | {
        f"ledger.jsonl/{number:06d}.json" for number in range(len(recorded))
    }
    assert beside | set(files) == set(store.list_tree(run_dir))


def test_a_killed_run_through_outages_ends_with_the_artifacts_of_a_local_one(bucket, proxy, tmp_path):
    """Outages in a checkpoint and in a stage; SIGKILL in the middle of the upload of the trained weights."""
    run_dir = f"{bucket}/run"
    proxy.stall_in(b'"run/round-1/train/policy/model.safetensors"', 10_000)
    process = start(run_dir, *SMALL, **proxy.environment)
    wait_for(process, lambda: store.list_tree(f"{run_dir}/round-1/train/checkpoints"))
    outage(proxy, 2)
    wait_for(process, proxy.stalled.is_set)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert store.list_tree(f"{run_dir}/round-1/train/policy") == []
    assert list(json.loads(store.read_text(f"{run_dir}/manifest.json"))["stages"]) == ["seed"]
    assert store.exists(f"{run_dir}/.lock")

    process = start(run_dir, *SMALL, **proxy.environment)
    wait_for(process, lambda: store.exists(f"{run_dir}/round-1/train/policy/config.json"))
    outage(proxy, 3)
    assert f"report: {run_dir}/report.html" in end(process)

    end(start(tmp_path / "local", *SMALL))
    assert_same_artifacts(run_dir, tmp_path / "local")


@pytest.mark.slow
def test_micro_killed_at_random_moments_ends_with_the_artifacts_of_a_local_run(bucket, tmp_path):
    run_dir, moments = f"{bucket}/run", random.Random(0)
    end(start(tmp_path / "local"))
    for _ in range(6):
        process = start(run_dir)
        try:
            process.wait(timeout=moments.uniform(8.0, 25.0))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
        process.communicate()
    end(start(run_dir))
    assert_same_artifacts(run_dir, tmp_path / "local")
