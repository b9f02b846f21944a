"""`looptool` as a process of a run, with what a test does to it, as the environment says:

WRITES=FILE   every file this process writes, makes, renames or removes under RUN_DIR goes into FILE, a line each
TERMINATE=N   SIGTERM to itself at its N-th commit
INTERRUPT=N   SIGTERM to itself in the first decoding behind its N-th training step
KILL=N        SIGKILL at its N-th commit to the processes whose ids lie in PIDS, itself last
PIDS=FOLDER   where the processes leave their ids
"""

import itertools
import os
import signal
import sys
from pathlib import Path

from looptool_jax.cli import main
from looptool_jax.data.store import Progress
from looptool_jax.training import checkpoint

CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.chmod", "os.link", "os.symlink")


def record_writes(file: str, run_dir: str) -> None:
    log = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def audit(event: str, args: tuple) -> None:
        if event == "open" and isinstance(args[0], str) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            paths = [args[0]]
        elif event in CHANGES:
            paths = [arg for arg in args if isinstance(arg, str)]
        else:
            return
        os.write(log, "".join(f"{path}\n" for path in paths if path.startswith(f"{run_dir}/")).encode())

    sys.addaudithook(audit)


def behind(real, act):
    """`real`, with `act` called on what it was called with, behind it."""

    def call(*args, **kwargs):
        result = real(*args, **kwargs)
        act(*args)
        return result

    return call


def at(number: int, act, counts=lambda *args: True):
    """Calls `act` at the call of that number of those that count."""
    numbers = itertools.count(1)

    def call(*args) -> None:
        if counts(*args) and next(numbers) == number:
            act()

    return call


def at_commit(number: int, act) -> None:
    """Calls `act` behind the commit of that number: an append to a progress file, or a checkpoint."""
    count = at(number, act)
    Progress.append = behind(Progress.append, count)  # type: ignore[method-assign]
    checkpoint.save = behind(checkpoint.save, count)


def at_step(number: int, act) -> None:
    """Calls `act` behind the training step of that number."""
    count = at(number, act, lambda progress, row: progress.path.endswith("/train/progress.jsonl"))
    Progress.append = behind(Progress.append, count)  # type: ignore[method-assign]


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def terminate_in_decoding() -> None:
    from looptool_jax.inference.engine import DecoderEngine  # TensorFlow comes with it, and greets

    decode = DecoderEngine.generate

    def interrupted(*args):
        DecoderEngine.generate = decode  # type: ignore[method-assign]
        terminate()
        return decode(*args)

    DecoderEngine.generate = interrupted  # type: ignore[method-assign]


def kill() -> None:
    ids = [int(file.name) for file in Path(os.environ["PIDS"]).iterdir()]
    for pid in sorted(ids, key=lambda pid: pid == os.getpid()):
        os.kill(pid, signal.SIGKILL)


if "WRITES" in os.environ:
    record_writes(os.environ["WRITES"], os.environ["RUN_DIR"])
if "PIDS" in os.environ:
    Path(os.environ["PIDS"], str(os.getpid())).touch()
if "TERMINATE" in os.environ:
    at_commit(int(os.environ["TERMINATE"]), terminate)
if "INTERRUPT" in os.environ:
    at_step(int(os.environ["INTERRUPT"]), terminate_in_decoding)
if "KILL" in os.environ:
    at_commit(int(os.environ["KILL"]), kill)
main()
