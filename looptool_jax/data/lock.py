"""One run at a time in a run directory.

On a local path the lock is the operating system's (`flock`), which ends with the process that holds it. An object store
has none: there the lock is an object that its owner writes anew every few seconds, each time on condition that it is
still its own. Who finds such a lock takes it over when its owner is dead: at once when that was a process of this
machine, else when nobody has written to it for about two minutes. So the command of a machine that was taken away runs
again on another one, and never beside a run that lives: an owner that cannot write to its lock for half that time ends
itself. No two clocks are compared.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import secrets
import signal
import socket
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from looptool_jax.data.files import (
    PARTIAL_SUFFIX,
    DataError,
    PathLike,
    dump_json,
    exists,
    is_url,
    join,
    local_path,
    parse_json,
    read_bytes,
    reported,
    writes_files,
)

if TYPE_CHECKING:
    from looptool_jax.data.object_store import GoogleStore

LOCK_NAME = ".lock"
BEAT = 20.0  # seconds between two writes of a lock object by its owner
POLL = 5.0  # seconds between two looks at another's lock object
LEASE = 120.0  # seconds without a write after which a lock object is nobody's; its owner gives it up after half

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Owner:
    """The process that holds a lock. lives: None where it cannot be known from here: it is on another machine, and the
    lock is a file."""

    name: str
    lives: bool | None


class DirectoryLock:
    """A held lock; `release()` or the end of a `with` block gives it back. This one holds nothing."""

    def release(self) -> None:
        """Give the lock back. A second call does nothing."""

    def __enter__(self) -> DirectoryLock:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def lock_directory(path: PathLike) -> DirectoryLock:
    """Lock a run directory, local or on `gs://`, for this process; leftovers of writes that a kill cut off go.

    A process that does not write (`write_files`) takes none: the one that writes has it for all. Raises DataError
    naming the owner where the lock is held, and where the directory cannot be written.
    """
    if not writes_files():
        return DirectoryLock()
    if not is_url(path):
        return _FileLock(local_path(path))
    if not str(path).startswith("gs://"):
        raise DataError(f"{path}: a run works in a local directory or on gs://; choose one")
    return _ObjectLock(str(path))


def lock_owner(path: PathLike) -> Owner | None:
    """Who has a run directory locked; None: nobody, or who had it gave it back. Takes nothing and writes nothing.

    Raises DataError where the store cannot be read.
    """
    file = join(path, LOCK_NAME)
    silent = None
    try:
        if is_url(path):
            with reported(file, "read"):
                silent = _open_store().age(file)
        data = read_bytes(file)
    except DataError:
        if exists(file):
            raise
        return None
    if not data:
        return None
    owner = _read(data)
    lives: bool | None = None
    if _is_of_this_machine(owner):
        lives = _lives(owner)
    elif silent is not None:
        lives = silent < LEASE
    return Owner(_name(owner), lives)


class _FileLock(DirectoryLock):
    def __init__(self, folder: Path) -> None:
        file = folder / LOCK_NAME
        if folder.is_file():
            raise DataError(f"{folder}: this is a file; name a directory")
        with reported(file, "locked"):
            folder.mkdir(parents=True, exist_ok=True)
            self._descriptor: int | None = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.ftruncate(self._descriptor, 0)
                os.write(self._descriptor, dump_json(_this_process()))
            except BlockingIOError:
                owner = _read(os.pread(self._descriptor, 4096, 0))
                os.close(self._descriptor)
                raise _in_use(str(folder), owner) from None
            except BaseException:
                os.close(self._descriptor)
                raise
        for partial in folder.rglob(f".*{PARTIAL_SUFFIX}"):
            partial.unlink(missing_ok=True)

    def release(self) -> None:
        if self._descriptor is not None:
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, 0)
            os.close(self._descriptor)
            self._descriptor = None


class _ObjectLock(DirectoryLock):
    """A run that loses its lock (it could not reach the store for half the lease, or finds it taken) is interrupted,
    and leaving the `with` block raises DataError."""

    def __init__(self, folder: str) -> None:
        self.folder, self.path = folder, join(folder, LOCK_NAME)
        self._token = secrets.token_hex(8)
        self._lost = ""  # why
        self._written = 0.0  # when the last write that the store confirmed was begun
        self._released = threading.Event()
        with reported(self.path, "written"):
            self._store = _open_store()
            self._generation = self._take()
        # Not SIGINT, which a job in the background of a shell ignores.
        self._interrupt, self._handler = signal.SIGINT, None
        if threading.current_thread() is threading.main_thread():
            self._interrupt = signal.SIGUSR1
            self._handler = signal.signal(signal.SIGUSR1, signal.default_int_handler)
        self._beating = threading.Thread(target=self._beat, daemon=True)
        self._beating.start()

    def release(self) -> None:
        if not self._released.is_set():
            self._released.set()
            self._beating.join()
            if self._handler is not None:
                signal.signal(signal.SIGUSR1, self._handler)
            if not self._lost:
                with contextlib.suppress(Exception):  # nobody's from now on, it ends by itself
                    self._store.delete(self.path, self._generation)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()
        if self._lost:
            raise DataError(
                f"{self.folder}: {self._lost}; what was committed is kept, and this process has ended"
            ) from error

    def _take(self) -> int:
        """The generation of the lock object, now this process's."""
        generation = self._put(0)
        while generation is None:
            found = self._store.current(self.path)
            if found is None:  # released between the two requests
                generation = self._put(0)
                continue
            owner = _read(found[0])
            dead = not _lives(owner) if _is_of_this_machine(owner) else self._is_abandoned(owner, found[1])
            if not dead:
                raise _in_use(self.folder, owner)
            generation = self._put(found[1])
        return generation

    def _is_abandoned(self, owner: dict[str, Any], seen: int) -> bool:
        """Whether the lock object stays as it was seen for LEASE seconds, or goes. Looks are counted, not seconds, so
        that a store which does not answer for a while proves nothing."""
        _log.warning("%s: locked by %s; waiting up to %.0f s to see whether it lives", self.folder, _name(owner), LEASE)
        for _ in range(round(LEASE / POLL)):
            time.sleep(POLL)
            found = self._store.current(self.path)
            if found is None or found[1] != seen:
                return found is None
        return True

    def _put(self, generation: int, timeout: float | None = None) -> int | None:
        begun = time.monotonic()
        record = {**_this_process(), "lock": self._token, "write": secrets.token_hex(8)}
        put = self._store.replace(self.path, dump_json(record), generation, timeout)
        if put is not None:
            self._written = begun
        return put

    def _beat(self) -> None:
        patience = LEASE / 8
        while not self._released.wait(BEAT):
            try:
                generation = self._put(self._generation, patience)
                if generation is None and (found := self._store.current(self.path, patience)):
                    # The answer to an earlier write may have been lost for good.
                    generation = found[1] if _read(found[0]).get("lock") == self._token else None
            except Exception as error:  # the store is away; what the run itself writes fails too
                _log.warning("%s: cannot be written (%s)", self.path, type(error).__name__)
                if time.monotonic() - self._written > LEASE / 2:
                    return self._lose(
                        f"the store has not answered for {LEASE / 2:.0f} s, and another run may take this one's place"
                    )
                continue
            if generation is None:
                return self._lose("the store could not be reached for so long that another run took this one's place")
            self._generation = generation

    def _lose(self, reason: str) -> None:
        self._lost = reason
        # To the main thread itself: a signal that another thread takes does not end what the main one waits for.
        signal.pthread_kill(threading.main_thread().ident, self._interrupt)  # type: ignore[arg-type]


def _open_store() -> GoogleStore:
    from looptool_jax.data.object_store import GoogleStore

    return GoogleStore()


def _this_process() -> dict[str, Any]:
    """Who holds a lock. machine and space tell whether `pid` means anything to who reads it, started whether the
    process of that number is still the same one."""
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
        "machine": _machine(),
        "started": _started(os.getpid()),
    }


def _machine() -> str:
    """This boot of this machine, and the process numbers seen here; nothing where the system does not say."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _started(pid: int) -> str:
    """When a process started, in ticks since boot; nothing where it has ended."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if state in "ZX" else fields[18]


def _is_of_this_machine(owner: dict[str, Any]) -> bool:
    return bool(_machine()) and owner.get("machine") == _machine()


def _lives(owner: dict[str, Any]) -> bool:
    return _started(owner["pid"]) == owner["started"]


def _read(data: bytes) -> dict[str, Any]:
    try:
        owner = parse_json(data)
    except ValueError:
        owner = None
    return owner if isinstance(owner, dict) else {}


def _name(owner: dict[str, Any]) -> str:
    if not {"pid", "host"} <= owner.keys():
        return "a process that did not say which"
    return f"process {owner['pid']} on {owner['host']} since {owner.get('since', 'an unknown time')}"


def _in_use(folder: str, owner: dict[str, Any]) -> DataError:
    return DataError(
        f"{folder}: in use by another run ({_name(owner)}); wait for it or end it, or choose another directory"
    )
