"""What `looptool status` shows: of a run at work, of one that ended in every way, and of folders that hold none."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import jax
import pytest
from typer.testing import CliRunner

from looptool_jax.cli import app
from looptool_jax.data import files, lock
from looptool_jax.data.store import DataError, exists, list_tree, lock_directory, write_jsonl, write_text
from looptool_jax.loop import heartbeat
from looptool_jax.loop.console import Console
from looptool_jax.loop.heartbeat import beating
from looptool_jax.loop.ledger import Ledger
from looptool_jax.loop.manifest import Manifest
from looptool_jax.parallel.processes import Preempted
from looptool_jax.report.status import read_status, size
from looptool_jax.report.tables import duration

PLAN = ["seed", "eval-0", "round-1/train", "round-1/eval", "round-2/train", "round-2/eval"]


@pytest.fixture(autouse=True)
def writes():
    yield
    files.write_files(True)  # the command said otherwise for this process


def a_run(run_dir: str) -> str:
    """A run of two rounds behind the first one."""
    write_text(f"{run_dir}/config.yaml", "rounds: 2\n")
    manifest, ledger = Manifest(run_dir), Ledger(f"{run_dir}/ledger.jsonl")
    rows = [{"step": 1, "reward": 0.25}, {"step": 2, "reward": 0.75}]
    write_jsonl(f"{run_dir}/round-1/train/steps.jsonl", rows)
    accuracy = {"by_category": {}, "items": 4, "interval95": 0.1}
    for stage, seconds, metrics in (
        ("seed", 1.0, {}),
        ("eval-0", 10.0, accuracy | {"accuracy": 0.25}),
        ("round-1/train", 100.0, {"steps": 2}),
        ("round-1/eval", 20.0, accuracy | {"accuracy": 0.5}),
    ):
        ledger.record(stage, seconds, 7)
        manifest.commit(stage, (), (), metrics)
    return run_dir


def shown(run_dir: object) -> str:
    done = CliRunner().invoke(app, ["status", str(run_dir)], env={"COLUMNS": "300"})
    assert done.exit_code == 0, done.exception
    return done.output


def test_a_run_at_work(tmp_path, monkeypatch):
    """Told from another process: this one holds the lock and beats."""
    monkeypatch.setattr(heartbeat, "INTERVAL", 0.1)
    run_dir = a_run(str(tmp_path / "run"))
    console = Console(quiet=True)
    with lock_directory(run_dir), beating(console, run_dir, PLAN), console.stage("round-2/train"):
        console.steps = 2
        console.expect(40, 10)
        console.tokens(5000)
        time.sleep(0.2)
        console.log(1, {"train/reward": 0.5})
        console.advance(10, reward=0.5)
        before = list_tree(run_dir)
        code = "from looptool_jax.cli import main; main()"
        command = [sys.executable, "-c", code, "status", run_dir, "--json"]
        deadline = time.monotonic() + 30
        while True:
            status = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
            if status["stage"] and status["stage"]["done"] == 20:
                break
            assert time.monotonic() < deadline
        assert list_tree(run_dir) == before
    assert status["state"] == "running" and str(os.getpid()) in status["owner"]
    assert (status["round"], status["rounds"], status["stages_done"], status["stages"]) == (2, 2, 4, 6)
    assert (status["stage"]["name"], status["stage"]["total"]) == ("round-2/train", 40)
    assert status["rewards"] == [[3, 0.5]] and status["stage"]["figures"] == {"reward": 0.5}
    assert status["run_seconds_left"] == pytest.approx(status["stage_seconds_left"] + 20)
    assert [row["accuracy"] for row in status["accuracy"]] == [0.25, 0.5]
    assert status["memory"]["host"]["process"] > 10e6 and status["heartbeat_age"] < 30


def test_the_pace_of_a_resumed_stage_is_that_of_its_process(tmp_path):
    console = Console(quiet=True)
    with beating(console, str(tmp_path), PLAN), console.stage("round-1/probe"):
        console.expect(100, 60)
        console._started -= 10.0
        console.advance(20)
    stage = json.loads((tmp_path / "status.json").read_text())["stage"]
    assert (stage["done"], stage["total"]) == (80, 100) and stage["seconds_left"] == pytest.approx(10, rel=0.05)


def test_a_loss_that_is_no_number_is_told(tmp_path):
    run_dir, console = a_run(str(tmp_path)), Console(quiet=True)
    with lock_directory(run_dir):
        with beating(console, run_dir, PLAN), console.stage("round-2/train"):
            console.advance(1, reward=0.5, loss=math.nan)
        beat = json.loads((tmp_path / "status.json").read_text()) | {"state": "running", "moved": time.time()}
        write_text(tmp_path / "status.json", json.dumps(beat))
        assert read_status(run_dir)["stage"]["figures"] == {"reward": 0.5, "loss": None}
        assert "reward 0.500  loss not a finite number" in shown(run_dir)


@pytest.mark.parametrize(
    ("error", "state", "words"),
    [
        (None, "finished", "finished"),
        (Preempted(), "preempted", "preempted; the same command continues it"),
        (KeyboardInterrupt(), "stopped", "stopped; the same command continues it"),
        (DataError("judge: the disk\nis full"), "failed", "in round-2/train: judge: the disk is full"),
        (ZeroDivisionError("x"), "failed", "ZeroDivisionError: x"),
    ],
)
def test_how_a_run_ended(error, state, words, tmp_path):
    run_dir = a_run(str(tmp_path))
    console = Console(quiet=True)
    try:
        with lock_directory(run_dir), beating(console, run_dir, PLAN), console.stage("round-2/train"):
            if error is not None:
                raise error
    except BaseException as caught:
        assert caught is error
    found = read_status(run_dir)
    assert (found["state"], found["round"], found["stage"]) == (state, 2, None) and words in shown(run_dir)
    assert console.watchers == []


def test_the_last_error_is_kept_by_the_run_that_continues(tmp_path):
    run_dir = a_run(str(tmp_path))
    with pytest.raises(DataError), beating(Console(quiet=True), run_dir, PLAN):
        raise DataError("no room")
    with beating(Console(quiet=True), run_dir, PLAN):
        pass
    text = shown(run_dir)
    assert "finished" in text and "no room" in text


HOLD = """
import sys, time
from looptool_jax.data.store import lock_directory
from looptool_jax.loop.console import Console
from looptool_jax.loop.heartbeat import beating
with lock_directory(sys.argv[1]), beating(Console(quiet=True), sys.argv[1], ["seed"]):
    time.sleep(0.5)
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_run_that_was_killed(tmp_path):
    run_dir = a_run(str(tmp_path))
    holder = subprocess.Popen([sys.executable, "-c", HOLD, run_dir], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    assert read_status(run_dir)["state"] == "running"
    holder.kill()
    holder.communicate()
    beat = json.loads((tmp_path / "status.json").read_text())
    assert beat["run"]["plan"] == ["seed"], "which is done: it was killed behind the last commit"
    assert read_status(run_dir)["state"] == "finished"
    beat["run"]["plan"] = PLAN
    write_text(tmp_path / "status.json", json.dumps(beat))
    assert read_status(run_dir)["state"] == "killed" and "ended without a word" in shown(run_dir)


def test_a_run_in_which_nothing_moves(tmp_path):
    run_dir = a_run(str(tmp_path))
    with lock_directory(run_dir), beating(Console(quiet=True), run_dir, PLAN):
        pass
    path = tmp_path / "status.json"
    beat = json.loads(path.read_text()) | {"state": "running", "moved": time.time() - 3000}
    path.write_text(json.dumps(beat))
    with lock_directory(run_dir):
        text = shown(run_dir)
    assert "nothing has moved for long" in text and "last progress 50 min" in text


def test_a_stage_is_as_old_as_it_is_and_memory_that_of_a_process_that_lives(tmp_path):
    run_dir, console = a_run(str(tmp_path)), Console(quiet=True)
    with lock_directory(run_dir):
        with beating(console, run_dir, PLAN), console.stage("round-2/train"):
            console._started -= 5
            console.expect(40)
        path = tmp_path / "status.json"
        beat = json.loads(path.read_text()) | {"state": "running", "moved": time.time() - 100}
        path.write_text(json.dumps(beat))
        text = shown(run_dir)
        assert re.search(r"round-2/train  0 of 40  for 1 min 4[5-9] s", text) and "host: the process" in text
    assert "host: the process" not in shown(run_dir)


def test_a_run_of_another_machine_on_a_shared_disk(tmp_path, monkeypatch):
    run_dir = a_run(str(tmp_path))
    with lock_directory(run_dir), beating(Console(quiet=True), run_dir, PLAN):
        monkeypatch.setattr(lock, "_machine", lambda: "another")
        assert read_status(run_dir)["state"] == "running"


def test_folders_without_a_heartbeat_or_without_a_run(tmp_path):
    old, half = a_run(str(tmp_path / "old")), a_run(str(tmp_path / "half"))
    write_text(f"{half}/status.json", '{"state": "runn')
    assert "status.json: absent; only what is committed is known" in shown(old)
    assert "status.json: cannot be read (not JSON" in shown(half)
    assert read_status(half)["rewards"] == [[1, 0.25], [2, 0.75]]
    (tmp_path / "empty").mkdir()
    for folder in ("empty", "nowhere"):
        with pytest.raises(DataError, match="holds no run; give a run's directory"):
            read_status(str(tmp_path / folder))


def test_a_run_on_an_object_store(bucket, monkeypatch):
    run_dir = a_run(f"{bucket}/run")
    with lock_directory(run_dir), beating(Console(quiet=True), run_dir, PLAN):
        deadline = time.monotonic() + 20
        while not exists(f"{run_dir}/status.json") and time.monotonic() < deadline:
            time.sleep(0.05)
        status = read_status(run_dir)
        assert status["state"] == "running" and status["disk_bytes"] > 500
        monkeypatch.setattr(lock, "_machine", lambda: "another")
        assert lock.lock_owner(run_dir).lives
        monkeypatch.setattr(lock, "LEASE", -5.0)
        assert read_status(run_dir)["state"] == "killed"
        monkeypatch.undo()
    assert lock.lock_owner(run_dir) is None and read_status(run_dir)["state"] == "finished"


def test_a_heartbeat_that_cannot_be_written_does_not_hurt(tmp_path, monkeypatch):
    def fails(path, text):
        raise DataError("the disk is full")

    monkeypatch.setattr(heartbeat, "write_text", fails)
    console = Console(quiet=True)
    with beating(console, str(tmp_path), PLAN), console.stage("seed"):
        console.advance()
    assert not (tmp_path / "status.json").exists()


def test_of_several_processes_one_beats(tmp_path):
    files.write_files(False)
    before = threading.active_count()
    with beating(Console(quiet=True), str(tmp_path), PLAN):
        assert threading.active_count() == before
    assert list(tmp_path.iterdir()) == []


def test_memory_of_devices_that_tell(monkeypatch):
    stats = {"bytes_in_use": 5, "peak_bytes_in_use": 7, "bytes_limit": 9}
    tells = SimpleNamespace(id=3, device_kind="TPU v5 lite", memory_stats=lambda: stats)
    silent = SimpleNamespace(id=4, device_kind="cpu", memory_stats=lambda: None)
    monkeypatch.setattr(jax, "local_devices", lambda: [tells, silent])
    assert heartbeat._device_memory() == [{"device": "3", "kind": "TPU v5 lite", "used": 5, "peak": 7, "limit": 9}]


def test_words_for_times_and_sizes():
    words = ["0 s", "59 s", "1 min 0 s", "59 min 59 s", "1 h 0 min", "1 d 1 h"]
    assert [duration(s) for s in (0, 59, 60, 3599, 3600, 90000)] == words
    assert [size(count) for count in (5, 2048, 3 * 2**30)] == ["5 B", "2.0 KiB", "3.0 GiB"]
