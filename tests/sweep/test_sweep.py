"""A sweep and its trials as processes: failures, resuming, stopping, splitting. The trials are played (`stub.py`)."""

from __future__ import annotations

import csv
import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from looptool_jax.cli import app
from looptool_jax.config import check_kept, keep_config, load_config
from looptool_jax.data.store import DataError, lock_directory
from looptool_jax.loop.console import Console
from looptool_jax.sweep import trials
from looptool_jax.sweep.run import read_shard, run_sweep
from looptool_jax.sweep.space import read_sweep
from looptool_jax.sweep.trials import Place
from looptool_jax.sweep.values import SweepError

from .conftest import STUB, starts

MAIN = f"""
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from looptool_jax.sweep import trials
trials.PROGRAM, trials.check_kept = (sys.executable, "-S", {STUB!r}), lambda cfg: None
from looptool_jax.cli import main
main()
"""


def results(folder: str = "sweep") -> dict[str, dict[str, str]]:
    with open(f"{folder}/results.csv", newline="") as file:
        return {row["trial"]: row for row in csv.DictReader(file)}


def files(folder: str) -> dict[str, str]:
    found = [path for path in sorted(Path(folder).rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


def test_a_failed_trial_ends_nobody_else_and_is_tried_again(played, plan, capsys):
    plan({"seed=0": {"accuracy": [0.2, 0.3, 0.5]}, "seed=1": {"fail": True}, "seed=2": {"accuracy": [0.2, 0.4, 0.4]}})
    ended = played("seed=range(3)")
    assert ended.failures == {"base,seed=1": "looptool: \x1b[31mthe weights are gone"}
    found = results()
    assert [row["status"] for row in found.values()] == ["finished", "failed", "finished"]
    assert found["base,seed=1"]["problem"].endswith("the weights are gone")
    assert [found["base,seed=0"][f"accuracy_{round_}"] for round_ in range(3)] == ["0.2", "0.3", "0.5"]
    assert (found["base,seed=0"]["gain"], found["base,seed=0"]["reward"]) == ("0.3", "0.5")
    assert (found["base,seed=0"]["precision"], found["base,seed=0"]["harm"]) == ("0.5", "")
    assert "\x1b[31m" not in capsys.readouterr().out
    assert "the weights are gone" in Path("sweep/logs/base,seed=1.log").read_text()
    summary = Path("sweep/summary.md").read_text()
    # By hand: 0.5 and 0.4 are 45.0 ± 7.07; t(0.975, 1) · 7.07 / √2 = 63.53.
    assert "| base | 2 of 3 | 2 | 20.0 % | 45.0 ± 7.1 | -18.5 to 108.5 | +25.0 ± 7.1 |" in summary
    assert "## Trials that failed" in summary
    before = files("sweep/trials/base,seed=0")
    plan({"seed=1": {"accuracy": [0.2, 0.2, 0.6]}})
    assert played("seed=range(4)").failures == {}
    assert [line.split()[0] for line in starts()[3:]] == ["base,seed=1", "base,seed=3"]
    assert files("sweep/trials/base,seed=0") == before
    assert [row["status"] for row in results().values()] == ["finished"] * 4
    page = Path("sweep/summary.html").read_text()
    assert "<script" not in page and "4 of 4" in page


@pytest.mark.parametrize(("number", "why"), [(signal.SIGTERM, "preempted"), (signal.SIGINT, "interrupted")])
def test_a_signal_stops_the_trials_and_then_the_sweep(played, plan, number, why):
    plan({"seed=0": {"wait": True}})

    def tell() -> None:
        while not Path("waiting").exists():
            time.sleep(0.05)
        os.kill(os.getpid(), number)

    before = signal.signal(signal.SIGINT, signal.default_int_handler), signal.getsignal(signal.SIGTERM)
    threading.Thread(target=tell).start()
    ended = played("seed=range(2)", parallel=1)
    assert (ended.stop.why, ended.failures) == (why, {})
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == (
        signal.default_int_handler,
        before[1],
    )
    signal.signal(signal.SIGINT, before[0])
    assert [row["status"] for row in results().values()] == ["unfinished", "waiting"]
    plan({})
    assert not played("seed=range(2)").stop.why
    assert [row["status"] for row in results().values()] == ["finished"] * 2


def test_a_sweep_whose_trial_was_told_to_stop_stops_too(played, plan):
    """As on another host of a pod, where only the trial hears of the preemption."""
    plan({"seed=0": {"wait": True}})

    def tell() -> None:
        while not Path("waiting").exists():
            time.sleep(0.05)
        children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
        for child in children:
            if STUB in Path(f"/proc/{child}/cmdline").read_text():
                os.kill(int(child), signal.SIGTERM)

    threading.Thread(target=tell).start()
    assert played("seed=range(2)", parallel=1).stop.why == "preempted"
    assert len(starts()) == 1


def test_ctrl_c_at_the_command_says_how_to_go_on(plan):
    plan({"seed=0": {"wait": True}})
    command = [sys.executable, "-c", MAIN, "sweep", "--config", "micro", "seed=range(2)"]
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    while not Path("waiting").exists():
        assert process.poll() is None
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the trial too, which does not hear it
    _, said = process.communicate(timeout=60)
    assert (process.returncode, len(starts())) == (130, 1)
    assert said == "looptool: interrupted; give the same command again to continue\n"


def test_a_sweep_killed_with_its_trials_goes_on_and_ends_as_if_undisturbed(played, plan):
    plan({"seed=1": {"kill": True}})
    command = [sys.executable, "-c", MAIN, "sweep", "--config", "micro", "seed=range(3)", "--out", "killed"]
    no_devices = {**os.environ, "JAX_PLATFORMS": "none"}  # those are the trials'
    killed = subprocess.run(command, start_new_session=True, capture_output=True, env=no_devices)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert [row["status"] for row in results("killed").values()] == ["finished", "waiting", "waiting"]
    done = files("killed/trials/base,seed=0")
    plan({})
    assert not played("seed=range(3)", out="killed").failures and not played("seed=range(3)").failures
    assert sorted(line.split()[0][-1] for line in starts()) == ["0", "0", "1", "1", "1", "2", "2"]
    assert files("killed/trials/base,seed=0") == done
    for number in range(3):
        first, second = (Path(f"{name}/trials/base,seed={number}/manifest.json") for name in ("killed", "sweep"))
        assert first.read_bytes() == second.read_bytes()
    assert results("killed") == results()


def test_hopeless_groups_stop_behind_a_round_and_stay_stopped(played, plan):
    accuracy = {0.0001: 0.3, 0.0002: 0.5, 0.0003: 0.6, 0.0004: 0.7}
    plan({f"={rate}": {"accuracy": [0.2, value, value]} for rate, value in accuracy.items()})
    rates = ",".join(map(str, accuracy))
    played(f"train.optimizer.learning_rate={rates}", prune=True)
    found = results()
    assert [row["status"] for row in found.values()] == ["stopped", "stopped", "finished", "finished"]
    assert [row["accuracy_2"] for row in found.values()] == ["", "", "0.6", "0.7"]
    assert [line.split()[1] for line in starts()] == ["rounds=1"] * 4 + ["rounds=2"] * 2
    assert "1 (stopped)" in Path("sweep/summary.md").read_text()
    played(f"train.optimizer.learning_rate={rates}", prune=True)
    assert len(starts()) == 6 and [row["status"] for row in results().values()][:2] == ["stopped"] * 2


def test_shards_are_every_nth_trial_and_lie_in_one_folder(played, plan):
    played("seed=range(3)", "rounds=1", shard=(2, 2))
    assert [row["status"] for row in results().values()] == ["waiting", "finished", "waiting"]
    played("seed=range(3)", "rounds=1", shard=(1, 2))
    assert [row["status"] for row in results().values()] == ["finished"] * 3
    assert read_shard("2/8") == (2, 8) and read_shard(None) == (1, 1)
    for wrong in ("0/2", "3/2", "1", "a/b", "1/2/3", "-1/2"):
        with pytest.raises(SweepError, match="--shard"):
            read_shard(wrong)


def test_a_search_runs_its_points_and_names_the_best(played, plan, capsys):
    pytest.importorskip("optuna")
    plan({"high_ppl=top": {"accuracy": [0.2, 0.3, 0.8]}, "seed=1": {"accuracy": [0.2, 0.3, 0.4]}})
    played("compose.high_ppl=choice(top,random)", "seed=range(2)", trials=4, method="random")
    assert "best: high_ppl=top, accuracy 0.8" in capsys.readouterr().out
    assert {row["group"]: row["accuracy_2"] for row in results().values()} == {
        "high_ppl=top": "0.8", "high_ppl=random": "0.4",
    }  # fmt: skip
    assert len(starts()) == 4 and len(Path("sweep/search.jsonl").read_text().splitlines()) == 8


def test_two_sweeps_in_one_folder(played):
    with lock_directory("sweep/locks/all"), pytest.raises(DataError, match="in use by another run"):
        played("seed=range(2)")


def test_a_trial_whose_folder_holds_another_run_fails_and_keeps_it(played, monkeypatch):
    played("seed=range(1)")
    monkeypatch.setattr(trials, "check_kept", check_kept)
    run_dir = "sweep/trials/base,seed=0"
    keep_config(load_config("micro", [f"run_dir={run_dir}", "train.batch=4"]))
    before = files(run_dir)
    ended = played("seed=range(1)")
    assert "other settings (train.batch was 4, now 8)" in ended.failures["base,seed=0"] and len(starts()) == 1
    assert files(run_dir) == before


def test_what_needs_one_process_is_refused_with_several(plan):
    together = Place(1, True, ["--coordinator", "10.0.0.2:8476"])
    grid = read_sweep(None, "micro", ["seed=range(2)"])
    with pytest.raises(SweepError, match="--parallel: processes that work together"):
        run_sweep(grid, "sweep", Console(), 2, place=together)
    search = read_sweep(None, "micro", ["train.group=int(2,8)"])
    with pytest.raises(SweepError, match="a search: needs one process"):
        run_sweep(search, "sweep", Console(), place=together)
    pruned = read_sweep(None, "micro", ["train.group=2,4"], prune=True)
    for options, words in (({"place": together}, "prune: needs one process"), ({"shard": (1, 2)}, "--shard: prune")):
        with pytest.raises(SweepError, match=words):
            run_sweep(pruned, "sweep", Console(), **options)
    assert not Path("sweep").exists()


def test_processes_that_work_together_go_through_the_trials_in_step(plan):
    """Two sweeps on one folder, as on two hosts; the second prints and writes nothing."""
    together = ["--coordinator", "127.0.0.1:8476", "--processes", "2", "--process"]
    command = [sys.executable, "-c", MAIN, "sweep", "--config", "micro", "seed=range(3)", "--out", "sweep", *together]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    second, first = (subprocess.Popen([*command, str(index)], **pipes) for index in (1, 0))
    said = [process.communicate(timeout=60) for process in (first, second)]
    assert (first.returncode, second.returncode) == (0, 0), said
    assert said[0][0].count(": finished in ") == 3 and said[1] == ("", "")
    assert len(starts()) == 3 and [row["status"] for row in results().values()] == ["finished"] * 3


def test_a_dry_run_prints_commands_and_runs_none(plan):
    done = CliRunner().invoke(app, ["sweep", "ablations", "--dry-run", "--shard", "2/25", "policy.path=a b"])
    assert done.exit_code == 0 and not Path("runs").exists()
    ends = ("seed=1 run_dir=runs/sweep-ablations/trials/full,seed=1",)
    ends += ("compose.expanded_part=drop seed=1 run_dir=runs/sweep-ablations/trials/no-edde,seed=1",)
    start = "looptool run --config quickstart 'policy.path=a b' "
    assert done.output == "".join(f"{start}{end}\n" for end in ends)
