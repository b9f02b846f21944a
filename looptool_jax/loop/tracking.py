"""Experiment trackers: TensorBoard, Weights & Biases, Trackio and MLflow are told the metrics of a run.

Each tracker works in a thread of its own, so that a server which does not answer costs the run nothing; one that fails
is given up with a warning. A run has one id, kept in its directory, with which a resumed run goes on in the same run of
every tracker. Steps that are done again after a kill are told again and lie over the earlier ones.
"""

from __future__ import annotations

import logging
import os
import queue
import secrets
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any, Protocol

from looptool_jax.data.files import local_path, writes_files
from looptool_jax.data.store import (
    DataError,
    exists,
    is_url,
    join,
    list_names,
    read_bytes,
    read_text,
    write_bytes,
    write_text,
)
from looptool_jax.loop.console import Console, Watcher

ID_NAME = "tracking.id"
UPLOAD = 30.0  # seconds
PATIENCE = 20.0  # seconds in which trackers must have written what they were told when the run ends

_log = logging.getLogger(__name__)


class TrackingError(ValueError):
    """A tracker that cannot be used; the message names the setting and the remedy."""


@dataclass
class TrackingConfig:
    """to: which trackers, of tensorboard, wandb, trackio and mlflow. project: what they file the run under. name: of
    the run; null: the last part of run_dir. dir: folder of their local files; null: the run directory, or of a run on
    gs:// where the tracker itself puts them (TensorBoard writes to gs:// too). Where a server is, and who you are
    there, is said as each tracker wants it: WANDB_MODE, `wandb login`, MLFLOW_TRACKING_URI, TRACKIO_SPACE_ID."""

    to: list[str] = field(default_factory=list)
    project: str = "looptool"
    name: str | None = None
    dir: str | None = None

    def __post_init__(self) -> None:
        for name in self.to:
            if name not in TRACKERS:
                raise TrackingError(f"tracking.to: expected some of {', '.join(TRACKERS)}, found {name!r}")
        if self.dir is not None and is_url(self.dir) and set(self.to) - {"tensorboard"}:
            raise TrackingError(f"tracking.dir: only TensorBoard writes to {self.dir}; name a local folder")

    def folder(self, run_dir: str, tracker: str, label: str) -> str | None:
        """Where a tracker's files go; None: where it wants them itself. label: of the run; in a `dir` that runs share
        TensorBoard needs a folder of each, as it takes the event files of one for one run."""
        if self.dir is None and is_url(run_dir) and tracker != "tensorboard":
            return None
        folder = join(self.dir or run_dir, tracker)
        if self.dir is not None and tracker == "tensorboard":
            folder = join(folder, label)
        return folder if is_url(folder) else str(local_path(folder).absolute())


@dataclass(frozen=True)
class TrackedRun:
    """What a tracker is told of a run before its first metrics. id: the same in every process of the run. label: a name
    that no other run has. settings: by their full keys."""

    id: str
    project: str
    name: str
    label: str
    folder: str | None
    settings: dict[str, Any]


class Tracker(Protocol):
    def __init__(self, run: TrackedRun) -> None: ...

    def log(self, metrics: Mapping[str, float], step: int) -> None: ...

    def close(self, finished: bool) -> None:
        """Write what is not yet written. finished: the run is at its end, and will not be resumed."""


class TensorBoard:
    """An event file of each process. For gs:// it is written here and put there every UPLOAD seconds, as a whole."""

    def __init__(self, run: TrackedRun) -> None:
        assert run.folder is not None
        self._url = run.folder if is_url(run.folder) else None
        self._scratch = tempfile.TemporaryDirectory() if self._url else None
        self._folder = self._scratch.name if self._scratch else run.folder
        self._writer: Any = None  # opened with the first metrics
        self._put = time.monotonic()

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        if self._writer is None:
            from tensorboardX import SummaryWriter

            # Of earlier processes, what they wrote of this step and behind it is not shown, where a step of training
            # comes first: it is done again. A stage that comes first is behind all that was written.
            again = any(name.startswith("train/") for name in metrics)
            self._writer = SummaryWriter(
                self._folder, purge_step=step if again else None, max_queue=1000, filename_suffix=f".{time.time_ns()}"
            )
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()
        if time.monotonic() - self._put > UPLOAD:
            self._upload()

    def close(self, finished: bool) -> None:
        if self._writer is not None:
            self._writer.close()
            self._upload()

    def _upload(self) -> None:
        self._put = time.monotonic()
        if self._url is not None:
            for name in list_names(self._folder):
                write_bytes(join(self._url, name), read_bytes(join(self._folder, name)))


class WandB:
    """A run of Weights & Biases, online or offline as its own environment says."""

    def __init__(self, run: TrackedRun) -> None:
        os.environ.setdefault("WANDB_SILENT", "true")
        import wandb

        if run.folder is not None:
            os.makedirs(run.folder, exist_ok=True)
        if wandb.setup().settings.mode in ("online", "shared") and not wandb.login(prompt=False):  # `init` would ask
            raise TrackingError("no login: run `wandb login`, or set WANDB_MODE=offline")
        self._run = wandb.init(
            project=run.project, name=run.name, id=run.id, resume="allow", dir=run.folder, config=run.settings,
            settings=wandb.Settings(console="off"),  # the terminal is the run's
        )  # fmt: skip
        self._run.define_metric("step", hidden=True)
        self._run.define_metric("*", step_metric="step")  # its own step only rises; those done again would be lost

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self._run.log({**metrics, "step": step})

    def close(self, finished: bool) -> None:
        self._run.finish()


class Trackio:
    """A run of Trackio, local or on the Space or server that its environment names."""

    def __init__(self, run: TrackedRun) -> None:
        if run.folder is not None:
            os.environ.setdefault("TRACKIO_DIR", run.folder)  # read when it is imported
        import trackio

        self._run = trackio.init(
            project=run.project, name=run.label, resume="allow", config=run.settings, embed=False, auto_log_gpu=False,
            auto_log_cpu=False,
        )  # fmt: skip

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self._run.log(dict(metrics), step=step)

    def close(self, finished: bool) -> None:
        self._run.finish()


class MLflow:
    """A run of MLflow, on the server that MLFLOW_TRACKING_URI names or in a local SQLite file."""

    def __init__(self, run: TrackedRun) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Param

        for library in ("mlflow", "alembic"):  # they tell how a new file gets its tables
            logging.getLogger(library).setLevel(logging.WARNING)
        uri, artifacts = os.environ.get("MLFLOW_TRACKING_URI"), None
        if uri is None and run.folder is not None:
            os.makedirs(run.folder, exist_ok=True)
            uri, artifacts = f"sqlite:///{run.folder}/mlflow.db", f"file://{run.folder}/artifacts"
        self._client = MlflowClient(tracking_uri=uri)
        found = self._client.get_experiment_by_name(run.project)
        experiment = found.experiment_id if found else self._client.create_experiment(run.project, artifacts)
        earlier = self._client.search_runs([experiment], f"tags.looptool_id = '{run.id}'", max_results=1)
        if earlier:
            self._id = earlier[0].info.run_id
            self._client.update_run(self._id, status="RUNNING")
        else:
            self._id = self._client.create_run(experiment, run_name=run.name, tags={"looptool_id": run.id}).info.run_id
            params = [Param(key, str(value)[:500]) for key, value in run.settings.items()]
            for start in range(0, len(params), 100):  # most of one request
                self._client.log_batch(self._id, params=params[start : start + 100])

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now = round(1000 * time.time())
        self._client.log_batch(self._id, [Metric(name, value, now, step) for name, value in metrics.items()])

    def close(self, finished: bool) -> None:
        self._client.set_terminated(self._id, "FINISHED" if finished else "KILLED")


# By name, which is that of the extra too: the class, and the module it needs.
TRACKERS: dict[str, tuple[type[Tracker], str]] = {
    "tensorboard": (TensorBoard, "tensorboardX"),
    "wandb": (WandB, "wandb"),
    "trackio": (Trackio, "trackio"),
    "mlflow": (MLflow, "mlflow"),
}


class Tracking(Watcher):
    """The trackers of a run."""

    def __init__(self, cfg: TrackingConfig, run_dir: str, settings: dict[str, Any]) -> None:
        for name in cfg.to:
            package = TRACKERS[name][1]
            if find_spec(package) is None:
                raise TrackingError(
                    f"tracking.to: {name} needs the package {package}; pip install 'looptool-jax[{name}]', or leave it "
                    "out"
                )
        id_, title = _run_id(run_dir), cfg.name or run_dir.rstrip("/").rpartition("/")[2]
        label = f"{title}-{id_[:8]}"
        self._channels = [
            _Channel(name, TrackedRun(id_, cfg.project, title, label, cfg.folder(run_dir, name, label), settings))
            for name in dict.fromkeys(cfg.to)
        ]

    def metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        for channel in self._channels:
            if channel.thread.is_alive():
                channel.queue.put((step, dict(metrics)))

    def close(self, finished: bool) -> None:
        """Give the trackers a while to write what they were told."""
        deadline = time.monotonic() + PATIENCE
        for channel in self._channels:
            channel.finished = finished
            channel.queue.put(None)
        for channel in self._channels:
            channel.thread.join(max(0.0, deadline - time.monotonic()))
            if channel.thread.is_alive():
                _log.warning("tracking: %s does not answer; the last metrics may be missing there", channel.name)


@contextmanager
def tracked(console: Console, run_dir: str, cfg: TrackingConfig, settings: dict[str, Any]) -> Iterator[None]:
    """Trackers are told what the console is; of several processes, by the one that writes.

    settings: of the run, by their full keys. Raises TrackingError: a tracker's package is missing.
    """
    if not cfg.to or not writes_files():
        yield
        return
    tracking, finished = Tracking(cfg, run_dir, settings), False
    console.watchers.append(tracking)
    try:
        yield
        finished = True
    finally:
        console.watchers.remove(tracking)
        tracking.close(finished)


class _Channel:
    """A tracker, and the thread in which it is made and told."""

    def __init__(self, name: str, run: TrackedRun) -> None:
        self.name, self.finished = name, False
        self.queue: queue.SimpleQueue[tuple[int, dict[str, float]] | None] = queue.SimpleQueue()
        self.thread = threading.Thread(target=self._work, args=(run,), name=f"tracking {name}", daemon=True)
        self.thread.start()

    def _work(self, run: TrackedRun) -> None:
        try:
            tracker = TRACKERS[self.name][0](run)
            while (told := self.queue.get()) is not None:
                step, metrics = told
                tracker.log(metrics, step)
            tracker.close(self.finished)
        except Exception as error:  # of a library, a server or a network: none of them is the run's business
            reason = " ".join(str(error).split())[:300] or type(error).__name__
            _log.warning("tracking: %s is given up (%s); the run goes on without it", self.name, reason)


def _run_id(run_dir: str) -> str:
    """The id of the run in this directory, drawn when there is none."""
    path = join(run_dir, ID_NAME)
    if exists(path):
        text = read_text(path).strip()
        if not (len(text) == 32 and text.isalnum()):
            raise DataError(f"{path}: not the id of a run for trackers; remove it, and they begin a new one")
        return text
    text = secrets.token_hex(16)
    write_text(path, text + "\n")
    return text
