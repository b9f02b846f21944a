"""Trackers of a run, read back with their own readers: what was told, once, also where a run was killed and resumed.

Nothing here reaches a network.
"""

from __future__ import annotations

import json
import logging
import os
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from looptool_jax.config import load_config
from looptool_jax.data import files
from looptool_jax.data.store import list_tree, read_bytes
from looptool_jax.loop import tracking
from looptool_jax.loop.console import Console
from looptool_jax.loop.runner import Runner, Stage
from looptool_jax.loop.tracking import Tracking, TrackingConfig, TrackingError, tracked

SETTINGS = {"train.batch": 8, "policy.path": "nano/policy"}
REWARDS = {1: 0.1, 2: 0.2, 3: 0.3, 4: 0.4}


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    """No server, no telemetry."""
    for name in ("WANDB_API_KEY", "MLFLOW_TRACKING_URI", "TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")


def tell(run_dir: object, tracker: str, steps, accuracy: float | None = None, finished: bool = True, **cfg) -> None:
    """What one process of a run tells: rewards of training steps, then the accuracy behind the last of them."""
    told = Tracking(TrackingConfig([tracker], **cfg), str(run_dir), SETTINGS)
    for step in steps:
        told.metrics(step, {"train/reward": REWARDS[step], "train/kl": 0.0})
    if accuracy is not None:
        told.metrics(max(REWARDS), {"eval/accuracy": accuracy})
    told.close(finished)
    assert not any(channel.thread.is_alive() for channel in told._channels)


def scalars(folder: object) -> dict[str, list[tuple[int, float]]]:
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    read = accumulators.EventAccumulator(str(folder))
    read.Reload()
    return {tag: [(event.step, round(event.value, 6)) for event in read.Scalars(tag)] for tag in read.Tags()["scalars"]}


@pytest.fixture
def tensorboard():
    pytest.importorskip("tensorboardX")
    pytest.importorskip("tensorboard")


def test_tensorboard_shows_every_step_once(tmp_path, tensorboard):
    tell(tmp_path, "tensorboard", (1, 2, 3), finished=False)  # then killed: the last checkpoint was of step 1
    tell(tmp_path, "tensorboard", (2, 3, 4), accuracy=0.5, finished=False)  # then killed before the stage was done
    tell(tmp_path, "tensorboard", (), accuracy=0.5)
    found = scalars(tmp_path / "tensorboard")
    assert found["train/reward"] == list(REWARDS.items())
    assert set(found["eval/accuracy"]) == {(4, 0.5)}


def test_runs_that_share_a_folder_stay_apart_in_tensorboard(tmp_path, tensorboard):
    """Of the same name too, and over a resume."""
    shared = str(tmp_path / "shared")
    for run, steps in (("a/run", (1, 2)), ("b/run", (1,)), ("a/run", (3,))):
        (tmp_path / run).mkdir(parents=True, exist_ok=True)
        tell(tmp_path / run, "tensorboard", steps, dir=shared)
    ids = {run: (tmp_path / run / tracking.ID_NAME).read_text()[:8] for run in ("a/run", "b/run")}
    found = {run: scalars(f"{shared}/tensorboard/run-{id_}")["train/reward"] for run, id_ in ids.items()}
    assert found == {"a/run": [(1, 0.1), (2, 0.2), (3, 0.3)], "b/run": [(1, 0.1)]}


def test_tensorboard_on_an_object_store(bucket, tensorboard, tmp_path):
    tell(f"{bucket}/run", "tensorboard", (1, 2))
    tell(f"{bucket}/run", "tensorboard", (2, 3))
    for name in list_tree(f"{bucket}/run/tensorboard"):
        (tmp_path / name).write_bytes(read_bytes(f"{bucket}/run/tensorboard/{name}"))
    assert scalars(tmp_path)["train/reward"] == [(1, 0.1), (2, 0.2), (3, 0.3)]


def wandb_records(file: Path):
    """The records of an offline run: LevelDB's log format behind a header of 7 bytes, in blocks of 32 KiB."""
    from wandb.proto import wandb_internal_pb2 as protocol

    data, place, parts = file.read_bytes(), 7, b""
    while place + 7 <= len(data):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
            continue
        _, size, kind = struct.unpack("<IHB", data[place : place + 7])
        if place + 7 + size > len(data):
            return  # it is being written
        parts += data[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # whole, or the last part
            record = protocol.Record()
            record.ParseFromString(parts)
            yield record
            parts = b""


def whole_wandb_records(file: Path):
    """W&B's own process writes the file, and may do so behind `finish`: the record `exit` comes last."""
    deadline = time.monotonic() + 30
    while True:
        records = list(wandb_records(file))
        if any(record.WhichOneof("record_type") == "exit" for record in records):
            return records
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_wandb_goes_on_in_the_same_run(tmp_path):
    pytest.importorskip("wandb")
    tell(tmp_path, "wandb", (1, 2), project="p", name="n", finished=False)
    time.sleep(1.1)  # an offline run's folder is named by the second
    tell(tmp_path, "wandb", (2, 3), project="p", name="n")
    history, runs = [], set()
    written = sorted(tmp_path.glob("wandb/wandb/offline-run-*/*.wandb"))
    assert len(written) == 2
    for file in written:
        for record in whole_wandb_records(file):
            if record.WhichOneof("record_type") == "run":
                runs.add((record.run.run_id, record.run.project, record.run.display_name))
            if record.WhichOneof("record_type") == "history":
                row = {item.key or ".".join(item.nested_key): item.value_json for item in record.history.item}
                history.append((int(row["step"]), float(row["train/reward"])))
    assert history == [(1, 0.1), (2, 0.2), (2, 0.2), (3, 0.3)]
    assert runs == {((tmp_path / tracking.ID_NAME).read_text().strip(), "p", "n")}


def test_mlflow_goes_on_in_the_same_run(tmp_path):
    mlflow = pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")
    tell(tmp_path, "mlflow", (1, 2), project="p", name="n", finished=False)
    tell(tmp_path, "mlflow", (2, 3), accuracy=0.5, project="p", name="n")
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/mlflow/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("p").experiment_id])
    assert (run.info.run_name, run.info.status) == ("n", "FINISHED")
    assert run.data.params == {key: str(value) for key, value in SETTINGS.items()}
    rewards = {(metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, "train/reward")}
    assert rewards == {(1, 0.1), (2, 0.2), (3, 0.3)} and run.data.metrics["eval/accuracy"] == 0.5


def test_trackio_goes_on_in_the_same_run(tmp_path):
    """In processes of their own: Trackio reads its folder when it is imported."""
    pytest.importorskip("trackio")
    code = (
        "import sys; from looptool_jax.loop.tracking import Tracking, TrackingConfig\n"
        "told = Tracking(TrackingConfig(['trackio'], project='p', name='n'), sys.argv[1], {'train.batch': 8})\n"
        "for step in map(int, sys.argv[2:]): told.metrics(step, {'train/reward': step / 10})\n"
        "told.close(True)\n"
    )
    read = (
        "import json; from trackio import Api; from trackio.sqlite_storage import SQLiteStorage\n"
        "(run,) = Api().runs('p')\n"
        "rows = SQLiteStorage.get_logs('p', run.name, run_id=run.id)\n"
        "print(json.dumps([run.name, [(row['step'], row['train/reward']) for row in rows]]))\n"
    )
    env = {**os.environ, "TRACKIO_DIR": str(tmp_path / "trackio"), "HF_HUB_OFFLINE": "1"}
    for steps in (["1", "2"], ["2", "3"]):
        subprocess.run([sys.executable, "-c", code, str(tmp_path), *steps], check=True, env=env)
    done = subprocess.run([sys.executable, "-c", read], check=True, env=env, capture_output=True, text=True)
    name, rows = json.loads(done.stdout.splitlines()[-1])
    assert name == f"n-{(tmp_path / tracking.ID_NAME).read_text()[:8]}"
    assert {tuple(row) for row in rows} == {(1, 0.1), (2, 0.2), (3, 0.3)}


class Records:
    """A tracker that keeps what it is told."""

    told: list[tuple[str, int, str, float]] = []  # noqa: RUF012

    def __init__(self, run):
        self.id = run.id

    def log(self, metrics, step):
        self.told += [(self.id, step, name, value) for name, value in metrics.items() if "seconds" not in name]

    def close(self, finished):
        self.told.append((self.id, 0, "finished", float(finished)))


def test_steps_count_through_rounds_and_over_a_resume(tmp_path, monkeypatch):
    """The runner with stages that compute nothing; the manifest is that of a run that nobody tracks."""
    monkeypatch.setitem(tracking.TRACKERS, "wandb", (Records, "json"))
    monkeypatch.setattr(Records, "told", [])
    monkeypatch.setattr(Runner, "_check_models", lambda self: None)
    interrupts = [True]

    def stages(self):
        def train(count, interrupted):
            for step in range(1, count + 1):
                self.console.log(step, {"train/reward": step / 10})
            if interrupted and interrupts and interrupts.pop():
                raise KeyboardInterrupt
            return {"steps": count}

        accuracy = {"accuracy": 0.5, "interval95": 0.1, "items": 4, "truncated": 0, "by_category": {}}
        return [
            Stage("round-1/train", (), (), lambda: train(3, False)),
            Stage("round-1/eval", (), (), lambda: accuracy),
            Stage("round-2/train", (), (), lambda: train(2, True)),
            Stage("round-2/eval", (), (), lambda: accuracy),
        ]

    monkeypatch.setattr(Runner, "stages", stages)

    def run(folder: str, *overrides: str) -> None:
        Runner(load_config("micro", [f"run_dir={tmp_path}/{folder}", *overrides]), Console(quiet=True)).run()

    with pytest.raises(KeyboardInterrupt):
        run("tracked", "tracking.to=[wandb]")
    first, Records.told = Records.told, []
    run("tracked", "tracking.to=[wandb]")
    assert {id_ for id_, *_ in first} == {id_ for id_, *_ in Records.told} and first[-1][2:] == ("finished", 0.0)
    rewards = [
        [(step, value) for _, step, name, value in told if name == "train/reward"] for told in (first, Records.told)
    ]
    assert rewards == [[(1, 0.1), (2, 0.2), (3, 0.3), (4, 0.1), (5, 0.2)], [(4, 0.1), (5, 0.2)]]
    steps = [step for _, step, name, _ in first + Records.told if name == "eval/accuracy"]
    assert steps == [3, 5] and Records.told[-1][2:] == ("finished", 1.0)
    run("alone")
    assert (tmp_path / "alone/manifest.json").read_bytes() == (tmp_path / "tracked/manifest.json").read_bytes()
    assert not (tmp_path / "alone" / tracking.ID_NAME).exists()


class Refuses:
    def __init__(self, run):
        self.told = 0

    def log(self, metrics, step):
        raise ConnectionError("no route to host\n(tried 3 times)")

    def close(self, finished):
        raise AssertionError("it was given up")


def test_a_tracker_that_fails_is_given_up_with_one_warning(tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(tracking.TRACKERS, "wandb", (Refuses, "json"))
    monkeypatch.setattr(logging.getLogger("looptool_jax"), "propagate", True)
    console = Console(quiet=True)
    with tracked(console, str(tmp_path), TrackingConfig(["wandb"]), {}):
        for step in REWARDS:
            console.log(step, {"train/reward": 0.5})
    assert console.watchers == []
    (record,) = caplog.records
    assert record.getMessage() == (
        "tracking: wandb is given up (no route to host (tried 3 times)); the run goes on without it"
    )


def test_a_tracker_that_hangs_does_not_hold_the_run(tmp_path, monkeypatch, caplog):
    class Hangs(Refuses):
        def log(self, metrics, step):
            hold.wait()

    hold = threading.Event()
    monkeypatch.setitem(tracking.TRACKERS, "mlflow", (Hangs, "json"))
    monkeypatch.setattr(tracking, "PATIENCE", 0.05)
    monkeypatch.setattr(logging.getLogger("looptool_jax"), "propagate", True)
    tell_ = Tracking(TrackingConfig(["mlflow"]), str(tmp_path), {})
    tell_.metrics(1, {"train/reward": 1.0})
    tell_.close(True)
    hold.set()
    assert "mlflow does not answer" in caplog.text


def test_what_cannot_be_tracked_is_told_before_the_run(tmp_path, monkeypatch):
    with pytest.raises(TrackingError, match="expected some of tensorboard, wandb, trackio, mlflow, found 'tensorbord'"):
        TrackingConfig(["tensorbord"])
    with pytest.raises(TrackingError, match="only TensorBoard writes to gs://bucket/x"):
        TrackingConfig(["tensorboard", "mlflow"], dir="gs://bucket/x")
    monkeypatch.setitem(tracking.TRACKERS, "wandb", (Refuses, "no_such_package"))
    with pytest.raises(TrackingError, match=r"no_such_package; pip install 'looptool-jax\[wandb\]'"):
        Tracking(TrackingConfig(["wandb"]), str(tmp_path), {})
    (tmp_path / tracking.ID_NAME).write_text("???")
    with pytest.raises(files.DataError, match="not the id of a run for trackers"):
        tracking._run_id(str(tmp_path))


def test_of_several_processes_one_tells(tmp_path):
    files.write_files(False)
    try:
        console = Console(quiet=True)
        with tracked(console, str(tmp_path), TrackingConfig(["tensorboard"]), {}):
            assert console.watchers == []
    finally:
        files.write_files(True)
    assert list(tmp_path.iterdir()) == []
