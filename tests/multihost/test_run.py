"""The whole loop (`micro`) in several real processes, undisturbed and disturbed.

The rest, minutes: `pytest -m slow tests/multihost`.
"""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path

import pytest

from looptool_jax.loop.train import read_passed
from looptool_jax.parallel.processes import PREEMPTED

from .conftest import Ended, Processes, ended

RUN = str(Path(__file__).parent / "run.py")


def start(
    processes: Processes,
    run_dir: Path,
    count: int,
    devices: int,
    *overrides: str,
    env: dict[int, dict[str, str]] | None = None,
) -> list[subprocess.Popen[str]]:
    """`looptool run --config micro` in `count` processes of `devices` devices each, the generator held to grammars."""
    pids = run_dir.with_suffix(".pids")
    pids.mkdir(parents=True, exist_ok=True)
    for old in pids.iterdir():
        old.unlink()

    def command(index: int, address: str) -> list[str]:
        several = ["--coordinator", address, "--processes", str(count), "--process", str(index)] if count > 1 else []
        return [RUN, "run", "--config", "micro", f"run_dir={run_dir}", "expand.grammar=true", *overrides, *several]

    def environment(index: int) -> dict[str, str]:
        cache = str(run_dir.parent / "cache")
        return {
            "JAX_COMPILATION_CACHE_DIR": cache,
            "PIDS": str(pids),
            "RUN_DIR": str(run_dir),
            **(env or {}).get(index, {}),
        }

    return processes.together(count, command, devices, environment)


def wait(started: list[subprocess.Popen[str]], timeout: float = 600) -> list[Ended]:
    return [ended(process, timeout) for process in started]


def codes(results: list[Ended]) -> list[int]:
    return [result.code for result in results]


def leftovers(run_dir: Path) -> list[str]:
    names = [file.name for file in run_dir.rglob("*")]
    return [name for name in names if "progress" in name or "processes" in name or name.endswith((".tmp", ".partial"))]


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def undisturbed(base):
    """Two processes with two devices each; what they printed, and what the second one wrote."""
    processes = Processes()
    try:
        written = base / "written"
        results = wait(start(processes, base / "undisturbed", 2, 2, env={1: {"WRITES": str(written)}}))
    finally:
        processes.close()
    assert codes(results) == [0, 0], results
    return base / "undisturbed", results, written.read_text().splitlines()


def test_the_whole_loop_in_two_processes(undisturbed):
    run_dir, (first, second), written = undisturbed
    manifest = json.loads((run_dir / "manifest.json").read_text())
    assert list(manifest["stages"])[-1] == "round-2/score"
    assert (run_dir / "report.html").is_file() and not leftovers(run_dir)
    assert any("Held-out accuracy" in line for line in first.out)
    assert second.out == [] and second.err == []
    assert written, "the second process takes part in checkpoints"
    assert [path for path in written if "/checkpoints/" not in path] == []


SHORT = ("rounds=1", "finish_loop=false", "train.checkpoint_every=10")


@pytest.fixture(scope="module")
def one(base):
    """One process with four devices, one round."""
    processes = Processes()
    try:
        assert codes(wait(start(processes, base / "one", 1, 4, *SHORT))) == [0]
    finally:
        processes.close()
    return base / "one"


def test_the_same_decisions_as_in_one_process(one, undisturbed):
    several = undisturbed[0]
    for file in ("seed/pool.jsonl", "round-1/data.jsonl", "eval-0/results.jsonl"):
        assert (several / file).read_bytes() == (one / file).read_bytes(), file
    rows = [
        [json.loads(line) for line in (run / "round-1/train/steps.jsonl").read_text().splitlines()]
        for run in (several, one)
    ]
    passed = [read_passed(str(run / "round-1/train")) for run in (several, one)]
    assert passed[0] == passed[1]
    shares = [sum(line.right / line.group for line in passed[0]) / len(passed[0])]
    shares += [sum(line.zero_variance for line in passed[0]) / len(passed[0])]
    means = [sum(row[name] for row in rows[0]) / len(rows[0]) for name in ("reward", "zero_variance")]
    assert shares == pytest.approx(means, abs=1e-6)
    for theirs, ours in zip(*rows, strict=True):
        for name in ("reward", "answer_tokens", "tokens", "prompt_tokens"):
            assert theirs[name] == ours[name], name
        for name in ("loss", "grad_norm", "entropy"):  # sums in another order
            assert theirs[name] == pytest.approx(ours[name], rel=1e-3, abs=1e-5), name


def test_preempted_killed_and_resumed(processes, base, undisturbed):
    """SIGTERM to one process in training; SIGKILL to both behind a commit; the rest of the run."""
    run_dir = base / "disturbed"
    results = wait(start(processes, run_dir, 2, 2, env={1: {"TERMINATE": "1"}}))
    assert codes(results) == [0, 0], results
    assert [result.err.count(PREEMPTED) for result in results] == [1, 0]
    done = json.loads((run_dir / "manifest.json").read_text())["stages"]
    assert "round-2/score" not in done

    results = wait(start(processes, run_dir, 2, 2, env={0: {"KILL": "3"}}))
    assert codes(results) == [-signal.SIGKILL] * 2
    assert len(json.loads((run_dir / "manifest.json").read_text())["stages"]) >= len(done)

    assert codes(wait(start(processes, run_dir, 2, 2))) == [0, 0]
    assert (run_dir / "manifest.json").read_bytes() == (undisturbed[0] / "manifest.json").read_bytes()
    assert not leftovers(run_dir)


def test_preempted_in_the_middle_of_a_rollout(processes, base, one):
    """The step before is saved though no checkpoint was due; only the rollout is made again."""
    run_dir = base / "interrupted"
    (result,) = wait(start(processes, run_dir, 1, 4, *SHORT, env={0: {"INTERRUPT": "1"}}))
    assert result.code == 0 and result.err.count(PREEMPTED) == 1, result
    stage = run_dir / "round-1/train"
    assert [folder.name for folder in (stage / "checkpoints").iterdir()] == ["step_00000001"]
    assert len((stage / "progress.jsonl").read_text().splitlines()) == 1
    assert codes(wait(start(processes, run_dir, 1, 4, *SHORT))) == [0]
    assert (run_dir / "manifest.json").read_bytes() == (one / "manifest.json").read_bytes()


def test_a_directory_in_use(processes, tmp_path):
    from looptool_jax.data.store import lock_directory

    with lock_directory(tmp_path / "run"):
        first, second = wait(start(processes, tmp_path / "run", 2, 1))
    assert (first.code, second.code) == (2, 2)
    assert len(first.err) == len(second.err) == 1
    assert "in use by another run" in first.err[0]
    assert second.err[0].startswith("looptool: process 0 failed: ") and "in use by another run" in second.err[0]


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("victim", [0, 1])
def test_one_killed_process_ends_the_other(processes, base, undisturbed, victim):
    """JAX notices that process 0 is gone at once, and another one by its missing heartbeats (100 s) at the latest."""
    run_dir = base / f"victim-{victim}"
    pids = run_dir.with_suffix(".pids")
    started = start(processes, run_dir, 2, 2)
    while not (run_dir / "round-1/probe/progress.jsonl").exists():
        assert all(process.poll() is None for process in started)
    started[victim].kill()
    other = ended(started[1 - victim], timeout=200)
    assert other.code not in (0, -signal.SIGKILL), other
    assert pids.is_dir() and codes(wait(start(processes, run_dir, 2, 2))) == [0, 0]
    assert (run_dir / "manifest.json").read_bytes() == (undisturbed[0] / "manifest.json").read_bytes()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_four_processes(processes, base):
    """Killed behind two commits, then resumed: the same manifest as of four undisturbed ones."""
    assert codes(wait(start(processes, base / "four", 4, 1))) == [0] * 4
    run_dir = base / "four-killed"
    for commit in ("2", "5"):
        results = wait(start(processes, run_dir, 4, 1, env={0: {"KILL": commit}}))
        assert codes(results) == [-signal.SIGKILL] * 4
    assert codes(wait(start(processes, run_dir, 4, 1))) == [0] * 4
    assert (run_dir / "manifest.json").read_bytes() == (base / "four/manifest.json").read_bytes()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_preemption_of_a_run_of_one_process(processes, base):
    whole, run_dir = base / "whole", base / "stopped"
    assert codes(wait(start(processes, whole, 1, 1))) == [0]
    for commit in ("1", "2", "3"):
        (result,) = wait(start(processes, run_dir, 1, 1, env={0: {"TERMINATE": commit}}))
        assert result.code == 0 and result.err.count(PREEMPTED) == 1, result
    (result,) = wait(start(processes, run_dir, 1, 1))
    assert result.code == 0 and PREEMPTED not in result.err
    assert (run_dir / "manifest.json").read_bytes() == (whole / "manifest.json").read_bytes()
