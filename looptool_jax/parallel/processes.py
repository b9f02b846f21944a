"""The processes of one run: how they find each other, stay in step, and end together.

On several hosts the same command runs once on each. All processes execute the same plain Python, so that they issue the
same device calls in the same order. Process 0 writes the files (`data.files.write_files`); the others read them behind
a `meet` that follows the writing. Whoever fails says so, and the others end too.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import re
import secrets
import signal
import socket
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import jax
from jax._src import distributed  # the key-value store and barriers of the coordination service have no public name
from jax._src.clusters.cluster import ClusterEnv  # how JAX tells which host of a pod this is
from jax.experimental import multihost_utils

from looptool_jax.data import files

CONNECT_SECONDS = 300  # in which all processes must be there
SHARED_SECONDS = 30  # in which a file of process 0 must be seen; network file systems keep old listings for a while
FAREWELL_SECONDS = 10
MEETING_MS = 24 * 3600 * 1000  # a process that died ends a meeting sooner: JAX's heartbeats are missed
OUTCOME = "looptool/outcome"
PREEMPTED = "looptool: preempted; give the same command again to continue"

_meetings, _sayings = itertools.count(), itertools.count()
_commits = itertools.count(1)
_told_to_stop, _interrupted = threading.Event(), threading.Event()


class ProcessError(ValueError):
    """Processes that cannot work together; the message says which, why, and what to do."""


class Preempted(Exception):
    """The machine is wanted back. When it leaves the run, all that was done is committed but the unfinished training
    step or chunk."""


@contextlib.contextmanager
def joined(
    coordinator: str | None = None,
    count: int | None = None,
    index: int | None = None,
    limit: float = CONNECT_SECONDS,
) -> Iterator[None]:
    """Work as one of the processes of a run (or the only one); comes before anything that touches a device.

    On the hosts of a TPU pod the processes find each other; elsewhere all three arguments, or JAX_COORDINATOR_ADDRESS,
    JAX_NUM_PROCESSES and JAX_PROCESS_ID in their place, are given, or none. A count of 1 is a process alone, on a pod
    too. Preemption inside ends this process with status 0 and says so; an error inside ends all processes.

    Args:
        coordinator: HOST:PORT of process 0, which serves the others there.
        count: of processes. index: of this one, from 0.
        limit: seconds in which all must have connected; a process that waits longer ends with a line and status 2.

    Raises:
        ProcessError: arguments that are incomplete or out of range; process 0 cannot listen at its address.
    """
    several = _connect(coordinator, count, index, limit)
    listener = threading.Thread(target=_end_with_others, daemon=True)
    if several:
        listener.start()
    else:  # of several processes, JAX listens to the signal
        before = signal.signal(signal.SIGTERM, _note_preemption)
    listens = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # jobs in the background do not
    if listens:
        signal.signal(signal.SIGINT, _note_interrupt)
    preempted = False
    try:
        files.write_files(is_first())
        meet("the version of JAX", jax.__version__)
        yield
    except Preempted:
        preempted = True
    except BaseException as error:
        if several:
            _tell_others(error)
        raise
    finally:
        _interrupted.clear()
        if listens:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        if not several:
            signal.signal(signal.SIGTERM, before)
    if preempted and is_first():
        print(PREEMPTED, file=sys.stderr, flush=True)
    if several:
        by_first(lambda: _client().key_value_set(OUTCOME, json.dumps(None)))
        listener.join()
        jax.distributed.shutdown()
    if preempted:
        raise SystemExit(0)


def is_first() -> bool:
    """Whether this is process 0: the one that writes and prints."""
    return jax.process_index() == 0


def meet(place: str, value: Any = None) -> None:
    """Wait until all processes are at the same place of the program, with the same `value` (JSON).

    What process 0 wrote before is there for all afterwards. Raises ProcessError where they differ: their device calls
    would go apart.
    """
    if jax.process_count() == 1:
        return
    number = next(_meetings)
    client, mine = _client(), f"looptool/meeting/{number}/"
    digest = hashlib.sha256(json.dumps([place, value], sort_keys=True).encode()).hexdigest()
    client.key_value_set(f"{mine}{jax.process_index()}", digest)
    client.wait_at_barrier(f"looptool/meeting/{number}", MEETING_MS)
    found = {int(key.rpartition("/")[2]): other for key, other in client.key_value_dir_get(mine)}
    if is_first() and number:
        client.key_value_delete(f"looptool/meeting/{number - 1}/")
    if strangers := sorted(index for index, other in found.items() if other != found[0]):
        raise ProcessError(
            f"processes 0 and {strangers[0]} differ in {place}; all must run the same program with the same command, "
            "models and data"
        )


def by_first(work: Callable[[], object]) -> None:
    """Process 0 does `work`, the others wait until it is done."""
    if is_first():
        work()
    meet("waiting for process 0")


def first_says(text: str) -> str:
    """What process 0 passes here, in all processes."""
    if jax.process_count() == 1:
        return text
    key = f"looptool/said/{next(_sayings)}"
    if is_first():
        _client().key_value_set(key, text)
    return _client().blocking_key_value_get(key, MEETING_MS)


def check_shared(folder: str) -> None:
    """Raises ProcessError in a process that does not see what process 0 writes in `folder`."""
    if jax.process_count() == 1:
        return
    path = files.join(folder, ".processes")
    token = first_says(secrets.token_hex(8))
    files.write_text(path, token)
    deadline = time.monotonic() + SHARED_SECONDS
    while not _holds(path, token):
        if time.monotonic() > deadline:
            raise ProcessError(
                f"{folder}: process {jax.process_index()} on {socket.gethostname()} does not see what process 0 writes "
                "there; the run directory must be one that all hosts share, by its full path"
            )
        time.sleep(0.2)
    meet("the run directory", folder)
    by_first(lambda: files.remove(path))


def preempted() -> bool:
    """Whether to commit what is done and stop here: this machine, or that of another process, is wanted back (SIGTERM).

    To be asked at every point where the run may stop, in every process: all get the same answer at the same point.
    Costs less than a microsecond until there is a notice.
    """
    if _interrupted.is_set():
        raise KeyboardInterrupt
    if jax.process_count() == 1:
        return _told_to_stop.is_set()
    return multihost_utils.reached_preemption_sync_point(next(_commits))


def stop_if_preempted() -> None:
    """Raises Preempted; to be called where what was done is committed, or is done again by who continues."""
    if preempted():
        raise Preempted


def on_tpu_pod(devices: str = "/dev") -> bool:
    """Whether this host is one of several of a TPU slice, or of several slices; touches no device.

    GKE names the workers in the environment. A TPU VM asks its metadata server; a machine without TPU chips (in the
    folder `devices`) asks nothing. A slice of one host needs no other process, so JAX is not made to wait for any.
    """
    if "tpu" not in os.environ.get("JAX_PLATFORMS", "tpu"):
        return False
    workers = os.environ.get("TPU_PROCESS_ADDRESSES") or os.environ.get("TPU_WORKER_HOSTNAMES")
    slices = os.environ.get("MEGASCALE_NUM_SLICES")
    if workers is None and _has_tpu(Path(devices)) and "TPU_SKIP_MDS_QUERY" not in os.environ:
        workers = _metadata("worker-network-endpoints")
        described = re.search(r"^MEGASCALE_NUM_SLICES: *'?(\d+)", _metadata("tpu-env"), re.MULTILINE)
        slices = slices or (described[1] if described else None)
    return len((workers or "").split(",")) * int(slices or 1) > 1


def _has_tpu(devices: Path) -> bool:
    return any(devices.glob("accel[0-9]*")) or any(devices.glob("vfio/[0-9]*"))


def _metadata(name: str) -> str:
    """An attribute of this Google Cloud machine; empty where there is none, or no such server."""
    host = os.environ.get("GCE_METADATA_IP", "metadata.google.internal")
    url = f"http://{host}/computeMetadata/v1/instance/attributes/{name}"
    request = urllib.request.Request(url, headers={"Metadata-Flavor": "Google"})
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return answer.read().decode()
    except (urllib.error.URLError, TimeoutError):
        return ""


def index_of(coordinator: str | None, count: int | None, index: int | None) -> int | None:
    """Which of several processes this one would be in `joined`, found out without joining; None: it is alone.

    Raises ProcessError, as `joined` does.
    """
    given = _given(coordinator, count, index)
    if given is None or given[2] is not None:
        return given and given[2]
    for kind in ClusterEnv._cluster_types:
        if not kind.opt_in_only_method and kind.is_env_present():
            return kind.get_process_id()
    raise ProcessError("which host of the pod this is cannot be found out; give --coordinator, --processes, --process")


def _given(
    coordinator: str | None, count: int | None, index: int | None
) -> tuple[str | None, int | None, int | None] | None:
    """The three arguments with those of the environment, of which on a pod some may be None; None: a process alone."""
    coordinator = coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS")
    count = _number("JAX_NUM_PROCESSES") if count is None else count
    index = _number("JAX_PROCESS_ID") if index is None else index
    if count == 1 and index in (None, 0):
        return None
    given = {"--coordinator": coordinator, "--processes": count, "--process": index}
    missing = [flag for flag, value in given.items() if value is None]
    pod = bool(missing) and on_tpu_pod()
    if len(missing) == 3 and not pod:
        return None
    if missing and not pod:
        raise ProcessError(
            f"{' and '.join(missing)} missing: a run of several processes needs --coordinator HOST:PORT, --processes N "
            "and --process I (or JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID) on each of them"
        )
    if count is not None and count < 1:
        raise ProcessError(f"--processes {count}: there must be at least 1")
    if count is not None and index is not None and not 0 <= index < count:
        raise ProcessError(f"--process {index}: with --processes {count} it goes from 0 to {count - 1}")
    if coordinator is not None and not re.fullmatch(r".+:\d{1,5}", coordinator):
        raise ProcessError(f"--coordinator {coordinator}: expected HOST:PORT, such as 10.0.0.2:8476")
    return coordinator, count, index


def _connect(coordinator: str | None, count: int | None, index: int | None, limit: float) -> bool:
    """Whether this process is one of several; then it is connected to them."""
    given = _given(coordinator, count, index)
    if given is None:
        return False
    coordinator, count, index = given
    where = f"the coordinator {coordinator or 'of the pod'}"
    late = threading.Timer(limit, _give_up, [
        f"not all processes have reached {where} in {limit:g} s; is the same command running on every host, process 0 "
        "at that address, and its port open?"
    ])  # fmt: skip
    late.start()
    try:
        jax.distributed.initialize(
            coordinator, count, index, initialization_timeout=int(limit) + 60,
            cluster_detection_method=None if None in given else "deactivate",
        )  # fmt: skip
    except (RuntimeError, ValueError) as error:
        raise ProcessError(f"{where} could not be set up ({str(error).splitlines()[0]})") from error
    finally:
        late.cancel()
    return True


def _number(variable: str) -> int | None:
    text = os.environ.get(variable)
    if text is not None and not re.fullmatch(r"-?\d+", text):
        raise ProcessError(f"{variable} is {text!r}; it must be a number")
    return None if text is None else int(text)


def _give_up(message: str) -> None:
    print(f"looptool: {message}", file=sys.stderr, flush=True)
    os._exit(2)  # a thread cannot interrupt what the main thread waits for


def _client() -> Any:
    return distributed.global_state.client


def _holds(path: str, token: str) -> bool:
    try:
        return files.read_text(path) == token
    except files.DataError:
        return False


def _note_preemption(number: int, frame: FrameType | None) -> None:
    _told_to_stop.set()


def _note_interrupt(number: int, frame: FrameType | None) -> None:
    """Ctrl-C. In a callback of the garbage collector Python drops the exception; `preempted` raises it again."""
    _interrupted.set()
    raise KeyboardInterrupt


def _tell_others(error: BaseException) -> None:
    """Say that this process failed, and wait until the others have heard it."""
    reason = " ".join(str(error).split())[:1000]
    if not reason or not isinstance(error, ValueError | OSError):
        reason = f"{type(error).__name__} {reason}".rstrip()
    message = json.dumps({"process": distributed.global_state.process_id, "reason": reason})
    try:
        _client().key_value_set(OUTCOME, message)
    except jax.errors.JaxRuntimeError:
        time.sleep(2 * FAREWELL_SECONDS)  # another process failed first, and ends this one
    _farewell()


def _end_with_others() -> None:
    """A thread of every process: when another one has failed, end this one too."""
    try:
        failure = json.loads(_client().blocking_key_value_get(OUTCOME, MEETING_MS))
    except jax.errors.JaxRuntimeError:
        return  # process 0 is gone, and JAX ends this process
    if failure is None or failure["process"] == distributed.global_state.process_id:
        return
    print(f"looptool: process {failure['process']} failed: {failure['reason']}", file=sys.stderr, flush=True)
    _farewell()
    os._exit(2)


def _farewell() -> None:
    """The process that serves the others must not go before they have heard why."""
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        _client().wait_at_barrier("looptool/farewell", 1000 * FAREWELL_SECONDS)
    if distributed.global_state.process_id == 0:
        time.sleep(1)
