"""Whole files, written atomically, and strict JSON.

A path is a local path or an fsspec URL (`gs://...`, `memory://...`). A local file is written under a
temporary name in the same directory, synced and renamed; an object is written with one put. So a reader
never sees half a file, and a failed write leaves the earlier file as it was.

All that changes files is `write_blocks`, `create_bytes`, `append_bytes`, `remove` and `remove_tree`, and beside them
the weight files of `models` and Orbax's checkpoints. Of several processes that work on one run one writes: in the
others, after `write_files(False)`, these functions (and `progress`, `lock`) leave everything as it is.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import math
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

PARTIAL_SUFFIX = ".partial"
COPIED_BYTES = 2**24  # at a time
MAX_DEPTH = 100
_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}

PathLike = str | os.PathLike[str]

_writes = True


def write_files(here: bool) -> None:
    """Whether this process changes files; so it does until told otherwise."""
    global _writes
    _writes = here


def writes_files() -> bool:
    return _writes


class DataError(ValueError):
    """A file that cannot be read or written; the message says which, where in it, and what to do."""


def parse_json(text: str | bytes) -> Any:
    """Read one JSON value of standard JSON. Raises ValueError with a short reason.

    Stricter than `json.loads`: NaN, infinities, numbers that overflow, repeated keys and nesting deeper than
    MAX_DEPTH are refused, so whatever is read can be written again and mean the same.
    """
    try:
        value = _DECODER.decode(text.decode("utf-8") if isinstance(text, bytes) else text)
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 at byte {error.start}") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg} at character {error.pos + 1}") from None
    except RecursionError:
        raise ValueError(f"nested deeper than {MAX_DEPTH} levels") from None
    if deeper_than(value):
        raise ValueError(f"nested deeper than {MAX_DEPTH} levels")
    return value


def dump_json(value: Any) -> bytes:
    """One line of JSON in UTF-8 without the newline, key order kept. Raises ValueError for what JSON cannot hold."""
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, RecursionError) as error:
        raise ValueError(f"not a JSON value: {error}") from None
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError:  # a lone surrogate has no UTF-8 form, but JSON can escape it
        return json.dumps(value, ensure_ascii=True, allow_nan=False).encode("ascii")


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"number {text[:20]} is too large")
    return value


def _integer(text: str) -> int:
    if len(text) > 4000:
        raise ValueError("an integer of more than 4000 digits")
    return int(text)


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"key {next(key for key in keys if keys.count(key) > 1)!r} occurs twice in one object")
    return value


_DECODER = json.JSONDecoder(
    parse_constant=_no_constant, parse_float=_finite, parse_int=_integer, object_pairs_hook=_unique_keys
)


def deeper_than(value: Any, depth: int = MAX_DEPTH) -> bool:
    """Whether a JSON value nests more than `depth` objects and lists."""
    level = [value]
    for _ in range(depth + 1):
        containers = [node for node in level if isinstance(node, (dict, list))]
        if not containers:
            return False
        level = [child for node in containers for child in (node.values() if isinstance(node, dict) else node)]
    return True


def is_url(path: PathLike) -> bool:
    """True for an fsspec URL of an object store. `file://` counts as a local path."""
    return "://" in str(path) and not str(path).startswith("file://")


def check_bucket(path: PathLike) -> None:
    """Raises DataError for a `gs://` URL that names no bucket."""
    if str(path).startswith("gs://") and not str(path).removeprefix("gs://").partition("/")[0]:
        raise DataError(f"{path}: names no bucket; give it as gs://bucket/folder")


def join(path: PathLike, *names: str) -> str:
    """`path/name/...` for local paths and URLs alike."""
    return "/".join([str(path).rstrip("/"), *names])


def write_bytes(path: PathLike, data: bytes) -> str:
    """Write a whole file atomically; directories are made. Returns the sha256 (hex). Raises DataError."""
    return write_blocks(path, [data])


def write_text(path: PathLike, text: str) -> str:
    """Write a whole UTF-8 file atomically. Returns the sha256 (hex). Raises DataError."""
    try:
        return write_bytes(path, text.encode("utf-8"))
    except UnicodeEncodeError as error:
        raise DataError(f"{path}: the text has no UTF-8 form (lone surrogate at character {error.start + 1})") from None


def read_bytes(path: PathLike) -> bytes:
    """The whole file. Raises DataError where it is absent or unreadable."""
    with reported(path, "read"):
        if is_url(path):
            store, name = open_store(path)
            return store.cat_file(name)
        return local_path(path).read_bytes()


def read_many(paths: Sequence[PathLike]) -> list[bytes]:
    """The whole files, which lie in one directory; objects are fetched at the same time. Raises DataError."""
    found = read_present(paths)
    return [found[str(path)] if str(path) in found else read_bytes(path) for path in paths]


def read_present(paths: Sequence[PathLike]) -> dict[str, bytes]:
    """As `read_many`, but of those files that are there, by their paths. Raises DataError."""
    found: dict[str, bytes] = {}
    if not paths or not is_url(paths[0]):
        for path in paths:
            with reported(path, "read"), contextlib.suppress(FileNotFoundError):
                found[str(path)] = local_path(path).read_bytes()
        return found
    with reported(paths[0], "read"):
        store = open_store(paths[0])[0]
        names = {open_store(path)[1]: str(path) for path in paths}
        for name, data in store.cat(list(names), on_error="return").items():
            if isinstance(data, bytes):
                found[names[name]] = data
            elif not isinstance(data, FileNotFoundError):
                raise data
    return found


def read_text(path: PathLike) -> str:
    """The whole UTF-8 file. Raises DataError where it is absent, unreadable or not UTF-8."""
    try:
        return read_bytes(path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 at byte {error.start}") from None


def exists(path: PathLike) -> bool:
    """Whether a file or directory is there. Raises DataError where that cannot be found out."""
    with reported(path, "looked up"):
        if is_url(path):
            store, name = open_store(path)
            return store.exists(name)
        return local_path(path).exists()


def is_file(path: PathLike) -> bool:
    """Whether a file, or an object, is there under this very name. Raises DataError."""
    with reported(path, "looked up"):
        if not is_url(path):
            return local_path(path).is_file()
        store, name = open_store(path)
        try:
            return store.info(name)["type"] == "file"
        except FileNotFoundError:
            return False


def remove(path: PathLike) -> None:
    """Remove one file; an absent one is fine."""
    if not _writes:
        return
    with reported(path, "removed"), contextlib.suppress(FileNotFoundError):
        if is_url(path):
            store, name = open_store(path)
            store.rm_file(name)
        else:
            local_path(path).unlink()


def remove_tree(path: PathLike) -> None:
    """Remove a file, or a directory (or URL prefix) with all that is in it; an absent one is fine."""
    if not _writes:
        return
    with reported(path, "removed"), contextlib.suppress(FileNotFoundError):
        if is_url(path):
            store, name = open_store(path)
            store.rm(name, recursive=True)
        elif local_path(path).is_dir():
            shutil.rmtree(local_path(path))
        else:
            local_path(path).unlink()


def list_names(path: PathLike) -> list[str]:
    """Sorted names in a directory (or under a URL prefix); empty where there is none."""
    with reported(path, "listed"):
        try:
            if not is_url(path):
                return sorted(os.listdir(local_path(path)))
            store, name = open_store(path)
            entries = [entry.rstrip("/") for entry in store.ls(name, detail=False)]
            return sorted(entry.rsplit("/", 1)[-1] for entry in entries if entry.strip("/") != name.strip("/"))
        except (FileNotFoundError, NotADirectoryError):
            return []


def list_tree(path: PathLike) -> list[str]:
    """Sorted paths of all files below a directory (or URL prefix), relative to it; empty where there is none."""
    with reported(path, "listed"):
        if not is_url(path):
            top = local_path(path)
            return sorted(file.relative_to(top).as_posix() for file in top.rglob("*") if file.is_file())
        store, name = open_store(path)
        prefix = name.rstrip("/") + "/"
        return sorted(file.removeprefix(prefix) for file in store.find(name) if file.startswith(prefix))


def tree_size(path: PathLike) -> int:
    """Bytes of all files below a directory (or URL prefix), as far as they are there for the time of the look."""
    with reported(path, "listed"):
        if is_url(path):
            store, name = open_store(path)
            return sum(entry["size"] or 0 for entry in store.find(name, detail=True).values())
        size = 0
        for folder, _, names in os.walk(local_path(path)):
            for name in names:
                with contextlib.suppress(FileNotFoundError):
                    size += os.lstat(os.path.join(folder, name)).st_size
        return size


def file_sha256(path: PathLike) -> str:
    """sha256 (hex) of a file's bytes; of an object that this program wrote, as the store keeps it. Raises DataError."""
    with reported(path, "read"):
        if is_url(path):
            store, name = open_store(path)
            kept = (store.info(name).get("metadata") or {}).get("sha256")
            return kept or hashlib.sha256(store.cat_file(name)).hexdigest()
        with local_path(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


def write_blocks(path: PathLike, blocks: Iterable[bytes]) -> str:
    """Write a whole file atomically from consecutive blocks. Returns the sha256 (hex). Raises DataError."""
    if not _writes:
        return hashlib.sha256(b"".join(blocks)).hexdigest()
    if is_url(path):
        data = b"".join(blocks)
        with reported(path, "written"):
            store, name = open_store(path)
            store.pipe_file(name, data)
        return hashlib.sha256(data).hexdigest()

    digest = hashlib.sha256()
    target = local_path(path)
    partial = target.parent / f".{secrets.token_hex(8)}{PARTIAL_SUFFIX}"
    try:
        with reported(path, "written"):
            target.parent.mkdir(parents=True, exist_ok=True)
            with open(partial, "xb") as file:
                for block in blocks:
                    digest.update(block)
                    file.write(block)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, target)
            sync_directory(target.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise
    return digest.hexdigest()


def copy_file(source: PathLike, target: PathLike) -> str:
    """Write a whole file again, elsewhere. Returns the sha256 (hex). Raises DataError."""
    with open_binary(source) as opened:
        return write_blocks(target, iter(partial(opened.read, COPIED_BYTES), b""))


def create_bytes(url: PathLike, data: bytes) -> None:
    """Put an object that must not be there yet. Raises DataError where it is, unless it holds these very bytes."""
    if not _writes:
        return
    with reported(url, "written"):
        store, name = open_store(url)
        try:
            store.pipe_file(name, data, mode="create")
        except FileExistsError:  # this process's own, when the answer to its first attempt was lost
            if store.cat_file(name) != data:
                raise DataError(
                    f"{url}: another run has written it; let one run work here, or choose another directory"
                ) from None


def append_bytes(path: PathLike, data: bytes) -> None:
    """Append to a local file with one write and sync it; a failed write is cut off again. Raises DataError."""
    if not _writes:
        return
    file = local_path(path)
    with reported(path, "written"):
        file.parent.mkdir(parents=True, exist_ok=True)
        new = not file.exists()
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            end = os.fstat(descriptor).st_size
            try:
                if os.write(descriptor, data) < len(data):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                os.fsync(descriptor)
            except BaseException:
                os.ftruncate(descriptor, end)
                raise
        finally:
            os.close(descriptor)
        if new:
            sync_directory(file.parent)


def sync_directory(path: PathLike) -> None:
    """Make renames and new names in a local directory durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def local_path(path: PathLike) -> Path:
    """The local path of a path or a `file://` URL."""
    return Path(str(path).removeprefix("file://"))


def open_store(path: PathLike) -> tuple[Any, str]:
    """The fsspec file system of a URL, and its path there. Raises DataError for a kind of address that is unknown."""
    import fsspec

    check_bucket(path)
    if str(path).startswith("gs://"):
        from looptool_jax.data import object_store

        object_store.register()
    try:
        return fsspec.core.url_to_fs(str(path))
    except (ImportError, ValueError) as error:
        raise DataError(f"{path}: this kind of address cannot be opened ({error})") from None


@contextlib.contextmanager
def open_binary(path: PathLike) -> Iterator[BinaryIO]:
    """A file open for reading bytes; an object is fetched whole, so that it cannot change between two blocks.

    Raises DataError where it is absent or unreadable.
    """
    if is_url(path):
        yield io.BytesIO(read_bytes(path))
        return
    with reported(path, "read"), local_path(path).open("rb") as opened:
        yield opened


@contextlib.contextmanager
def reported(path: PathLike, verb: str) -> Iterator[None]:
    """Turn an error of the operating system or an object store into one DataError a person can act on."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _NO_SPACE:
            raise DataError(
                f"{path}: cannot be {verb}, the disk (or the quota, or the file size limit) is full; "
                f"free some space or choose another directory, then run again"
            ) from error
        if isinstance(error, FileNotFoundError) and not is_url(path) and verb in ("written", "locked"):
            raise DataError(f"{path}: its directory cannot be made; choose another one") from None
        if isinstance(error, FileNotFoundError) and not (is_url(path) and verb == "written"):
            raise DataError(f"{path}: no such file") from None
        if is_url(path):
            from looptool_jax.data import object_store

            raise DataError(f"{path}: cannot be {verb}; {object_store.reason(str(path), error)}") from error
        if isinstance(error, OSError):
            raise DataError(f"{path}: cannot be {verb} ({error.strerror or error})") from error
        raise
