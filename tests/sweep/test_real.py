"""Sweeps of real micro runs, and runs compared by what they left. The slow ones: `pytest -m slow tests/sweep`."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from looptool_jax.cli import app
from looptool_jax.config import keep_config, load_config
from looptool_jax.data.store import read_jsonl, read_text
from looptool_jax.report.html import write_report

ENVIRONMENT = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_backend_optimization_level=0"}
STORE = ("STORAGE_EMULATOR_HOST", "TENSORSTORE_GCS_HTTP_URL")
SHORT = ("rounds=1", "finish_loop=false", "data.heldout=8", "train.answers.answer_tokens=32", "evaluate.drafts=false")


def sweep(*arguments: str, out: Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-m", "looptool_jax.cli", "sweep", *arguments, "--out", str(out)]
    return subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=check)


def results(out: Path) -> list[dict[str, str]]:
    with open(out / "results.csv", newline="") as file:
        return list(csv.DictReader(file))


def contents(folder: Path) -> dict[str, str]:
    found = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Two trials of one round, at the same time."""
    out = tmp_path_factory.mktemp("sweep")
    done = sweep("--config", "micro", "train.optimizer.learning_rate=1e-4,1e-2", *SHORT, "--parallel", "2", out=out)
    return out, done.stdout


def test_trials_are_ordinary_runs(two):
    out, said = two
    rows = results(out)
    assert [row["status"] for row in rows] == ["finished"] * 2 and said.count(": finished in ") == 2
    for row in rows:
        run_dir = out / "trials" / row["trial"]
        stages = json.loads((run_dir / "manifest.json").read_text())["stages"]
        assert [*stages] == ["seed", "eval-0", "round-1/train", "round-1/eval"]
        assert float(row["accuracy_1"]) == stages["round-1/eval"]["metrics"]["accuracy"]
        assert float(row["reward"]) == stages["round-1/train"]["metrics"]["reward_last"]
        assert write_report(str(run_dir)) == f"{run_dir}/report.html"
    before = {row["trial"]: contents(out / "trials" / row["trial"]) for row in rows}
    again = sweep("--config", "micro", "train.optimizer.learning_rate=0.0001,0.01", *SHORT, out=out)
    assert again.stdout.count(": done already") == 2
    assert {row["trial"]: contents(out / "trials" / row["trial"]) for row in rows} == before


def test_its_runs_are_compared(two, tmp_path):
    done = CliRunner().invoke(app, ["compare", str(two[0]), "--out", str(tmp_path / "found")])
    assert done.exit_code == 0, done.output
    assert "1 and 1 runs do not show how much the seed alone matters" in " ".join(done.output.split())
    with open(tmp_path / "found/comparison.csv", newline="") as file:
        (row,) = csv.DictReader(file)
    accuracy = [float(row["accuracy_1"]) for row in results(two[0])]
    assert row["items_n"] == "8" and float(row["items_mean"]) == pytest.approx(accuracy[1] - accuracy[0])


def test_what_trials_have_in_common_is_computed_once(tmp_path):
    """Without a loop behind the round nothing that is composed matters: the second trial is the first."""
    keep_config(load_config("micro", ["seed=5", f"run_dir={tmp_path}/trials/high_ppl=random"]))  # killed when it began
    said = sweep("--config", "micro", "compose.high_ppl=top,random", *SHORT, out=tmp_path).stdout
    assert "1/2 high_ppl=top: started\n" in said
    assert "2/2 high_ppl=random: started behind round-1/eval, as high_ppl=top has done it\n" in said
    first, second = (tmp_path / "trials" / name for name in ("high_ppl=top", "high_ppl=random"))
    assert (first / "manifest.json").read_bytes() == (second / "manifest.json").read_bytes()
    assert "high_ppl: random" in (second / "config.yaml").read_text()
    costs = [[row["stage"] for row in read_jsonl(run / "ledger.jsonl")] for run in (first, second)]
    assert costs[0] == costs[1] == ["seed", "eval-0", "round-1/train", "round-1/eval"]
    assert write_report(str(second)) == f"{second}/report.html"


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_trial_that_took_stages_over_is_the_run_alone(tmp_path):
    """Ablations of every kind: each ends as `looptool run` with its settings, given alone."""
    variants = {
        "full": {}, "no-jglv": {"judge.enabled": False}, "random": {"compose.high_ppl": "random"},
        "static": {"static": True},
    }  # fmt: skip
    (tmp_path / "kinds.yaml").write_text(json.dumps({"config": "micro", "variants": variants}))
    said = sweep(str(tmp_path / "kinds.yaml"), out=tmp_path / "sweep").stdout
    for name, last in (("no-jglv", "round-1/probe"), ("random", "round-1/judge"), ("static", "round-1/eval")):
        assert f"{name}: started behind {last}, as full has done it" in said
    for name, settings in variants.items():
        alone = tmp_path / name
        overrides = [f"{key}={str(value).lower()}" for key, value in settings.items()]
        command = [sys.executable, "-P", "-m", "looptool_jax.cli", "run", "--config", "micro", f"run_dir={alone}"]
        subprocess.run([*command, *overrides], env=ENVIRONMENT, check=True)
        manifests = [(run / "manifest.json").read_bytes() for run in (alone, tmp_path / "sweep/trials" / name)]
        assert manifests[0] == manifests[1], name


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_two_by_three_killed_half_way_ends_as_undisturbed(tmp_path):
    killed, undisturbed = tmp_path / "killed", tmp_path / "undisturbed"
    command = [sys.executable, "-P", "-m", "looptool_jax.cli", "sweep", "micro", *SHORT, "--out", str(killed)]
    with subprocess.Popen(
        command, env=ENVIRONMENT, start_new_session=True, stdout=subprocess.PIPE, text=True
    ) as process:
        assert any(line.startswith("3/6 ") and "started" in line for line in process.stdout)
        third = killed / "trials/learning_rate=0.0001,seed=2/round-1/train/progress.jsonl"
        while not third.exists():
            assert process.poll() is None
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGKILL)
    done = [killed / "trials" / f"learning_rate=0.0001,seed={seed}" for seed in (0, 1)]
    before = [contents(folder) for folder in done]
    assert sweep("micro", *SHORT, out=killed).returncode == 0
    assert [contents(folder) for folder in done] == before
    sweep("micro", *SHORT, out=undisturbed)
    for folder in (undisturbed / "trials").iterdir():
        assert (killed / "trials" / folder.name / "manifest.json").read_bytes() == (
            folder / "manifest.json"
        ).read_bytes()
    time_free = [{key: row[key] for key in row if key != "seconds"} for row in results(killed)]
    assert time_free == [{key: row[key] for key in row if key != "seconds"} for row in results(undisturbed)]
    assert len(time_free) == 6 and all(row["status"] == "finished" for row in time_free)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_run_that_grows_round_by_round_is_the_run_of_all_rounds(tmp_path):
    """What pruning rests on, with a cosine schedule, which ends with each round."""
    for out, steps in ((tmp_path / "grown", (1, 2)), (tmp_path / "whole", (2,))):
        for rounds in steps:
            command = ["run", "--config", "micro", f"run_dir={out}", f"rounds={rounds}", "finish_loop=false"]
            command += ["train.optimizer.schedule=cosine"]
            subprocess.run([sys.executable, "-P", "-m", "looptool_jax.cli", *command], env=ENVIRONMENT, check=True)
    assert (tmp_path / "grown/manifest.json").read_bytes() == (tmp_path / "whole/manifest.json").read_bytes()


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_two_processes_run_the_trials_together(tmp_path):
    """As the hosts of a pod do: the same command in each, one trial after another."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{listening.getsockname()[1]}"
    command = [sys.executable, "-P", "-m", "looptool_jax.cli", "sweep", "--config", "micro", "seed=range(2)", *SHORT]
    command += ["--out", str(tmp_path / "sweep"), "--coordinator", address, "--processes", "2", "--process"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    started = [subprocess.Popen([*command, str(index)], env=ENVIRONMENT, **pipes) for index in (0, 1)]
    said = [process.communicate(timeout=600)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0], said
    assert said[0].count(": finished in ") == 2 and said[1] == ""
    rows = results(tmp_path / "sweep")
    assert [row["status"] for row in rows] == ["finished"] * 2 and all(row["accuracy_1"] for row in rows)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_sweep_in_a_bucket(bucket):
    """The trials find the store by the environment, as the fixture sets it."""
    arguments = ["sweep", "--config", "micro", "seed=range(2)", *SHORT, "--out", f"{bucket}/sweep"]
    command = [sys.executable, "-P", "-m", "looptool_jax.cli", *arguments]
    environment = {**ENVIRONMENT, **{key: os.environ[key] for key in STORE if key in os.environ}}
    first, again = (
        subprocess.run(command, env=environment, capture_output=True, text=True, check=True) for _ in range(2)
    )
    assert first.stdout.count(": finished in ") == 2 and again.stdout.count(": done already") == 2
    rows = list(csv.DictReader(read_text(f"{bucket}/sweep/results.csv").splitlines()))
    assert [row["status"] for row in rows] == ["finished"] * 2 and all(row["accuracy_1"] for row in rows)
    assert "round-1/eval: started" in read_text(f"{bucket}/sweep/logs/{rows[0]['trial']}.log")
    done = CliRunner().invoke(app, ["compare", f"{bucket}/sweep"])
    assert "2 runs with the same settings but for the seed" in str(done.exception)
