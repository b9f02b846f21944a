"""The store of a run: JSON lines, sharded sample sets, progress files. All file access goes through here.

A sample set is one `.jsonl` file, or a directory of `samples-00000-of-00003.jsonl`, ...; the list of shards
that writing returns (file, sha256, rows) describes it in a manifest.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from looptool_jax.data.files import (
    DataError,
    PathLike,
    copy_file,
    dump_json,
    exists,
    file_sha256,
    is_file,
    is_url,
    join,
    list_names,
    list_tree,
    open_binary,
    parse_json,
    read_bytes,
    read_text,
    remove,
    remove_tree,
    write_blocks,
    write_bytes,
    write_text,
)
from looptool_jax.data.lock import DirectoryLock, lock_directory
from looptool_jax.data.progress import Progress
from looptool_jax.toolcall.records import RecordError, Sample

__all__ = [
    "DataError",
    "DirectoryLock",
    "PathLike",
    "Progress",
    "Shard",
    "copy_file",
    "dump_json",
    "exists",
    "file_sha256",
    "is_file",
    "is_url",
    "join",
    "list_names",
    "list_tree",
    "lock_directory",
    "parse_json",
    "read_bytes",
    "read_jsonl",
    "read_records",
    "read_samples",
    "read_text",
    "remove",
    "remove_tree",
    "shard_files",
    "write_bytes",
    "write_jsonl",
    "write_samples",
    "write_text",
]

Record = TypeVar("Record")
_SHARD_NAME = re.compile(r"(?P<name>.+)-(?P<index>\d{5})-of-(?P<count>\d{5})\.jsonl")


@dataclass(frozen=True)
class Shard:
    """One written file of a set: its path, the sha256 of its bytes (hex) and its number of rows."""

    file: str
    sha256: str
    rows: int


def write_jsonl(path: PathLike, rows: Iterable[dict[str, Any]]) -> str:
    """Write rows as JSON lines, atomically. Returns the sha256 (hex). Raises DataError, naming the row at fault."""

    def lines() -> Iterator[bytes]:
        for number, row in enumerate(rows, 1):
            try:
                yield dump_json(row) + b"\n"
            except ValueError as error:
                raise DataError(f"{path}:{number}: cannot be written as JSON ({error})") from None

    return write_blocks(path, lines())


def read_jsonl(path: PathLike) -> Iterator[dict[str, Any]]:
    """Yield the rows (JSON objects) of a file; blank lines are skipped. Raises DataError with file:line and reason."""
    for _, row in _numbered_rows(path):
        yield row


def read_records(path: PathLike, from_json: Callable[[dict[str, Any]], Record], what: str) -> list[Record]:
    """Every row of a file through `from_json`. `what` names a record in the DataError of a row that is none."""
    records = []
    for number, row in _numbered_rows(path):
        try:
            records.append(from_json(row))
        except (KeyError, TypeError, ValueError) as error:
            detail = f"{error} is missing" if isinstance(error, KeyError) else str(error)
            raise DataError(f"{path}:{number}: no {what}: {detail}") from None
    return records


def _numbered_rows(path: PathLike) -> Iterator[tuple[int, dict[str, Any]]]:
    with open_binary(path) as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = parse_json(line)
            except ValueError as error:
                raise DataError(f"{path}:{number}: {error}") from None
            if not isinstance(row, dict):
                raise DataError(f"{path}:{number}: expected a JSON object, found {type(row).__name__}")
            yield number, row


def write_samples(
    path: PathLike, samples: Iterable[Sample], shard_size: int = 4096, name: str = "samples"
) -> list[Shard]:
    """Write a sample set and return its files.

    A path that ends in `.jsonl` is one file. Any other path is a directory that gets
    `{name}-00000-of-00003.jsonl`, ... with at most `shard_size` rows each (an empty set is one empty shard);
    shards of an earlier set of that name are removed. Raises DataError.
    """
    rows = [sample.to_json() for sample in samples]
    if str(path).endswith(".jsonl"):
        return [Shard(str(path), write_jsonl(path, rows), len(rows))]
    if shard_size < 1:
        raise DataError(f"{path}: shard_size must be at least 1, not {shard_size}")
    count = max(1, math.ceil(len(rows) / shard_size))
    if count > 99_999:
        raise DataError(f"{path}: {count} shards are more than 99999; choose a larger shard_size")
    shards = []
    for index in range(count):
        part = rows[index * shard_size : (index + 1) * shard_size]
        file = join(path, f"{name}-{index:05d}-of-{count:05d}.jsonl")
        shards.append(Shard(file, write_jsonl(file, part), len(part)))
    written = {shard.file.rsplit("/", 1)[-1] for shard in shards}
    for stale in list_names(path):
        match = _SHARD_NAME.fullmatch(stale)
        if match and match["name"] == name and stale not in written:
            remove(join(path, stale))
    return shards


def read_samples(path: PathLike, name: str = "samples") -> Iterator[Sample]:
    """Yield the samples of a `.jsonl` file, or of the complete shard set `name` in a directory.

    Raises DataError for an absent file, a missing shard, two mixed sets, or a line that is no sample.
    """
    for file in [str(path)] if str(path).endswith(".jsonl") else shard_files(path, name):
        for number, row in _numbered_rows(file):
            try:
                yield Sample.from_json(row)
            except RecordError as error:
                foreign = isinstance(row, dict) and "id" not in row
                remedy = "; name another format's records by data.format=openai or the like, or: looptool import"
                raise DataError(f"{file}:{number}: no sample: {error}{remedy if foreign else ''}") from None


def shard_files(path: PathLike, name: str = "samples") -> list[str]:
    """The files of the complete shard set `name` in a directory, in order. Raises DataError where one is missing."""
    matches = [match for entry in list_names(path) if (match := _SHARD_NAME.fullmatch(entry)) and match["name"] == name]
    if not matches:
        raise DataError(f"{path}: no sample set here (expected {name}-00000-of-NNNNN.jsonl, or a .jsonl file)")
    counts = sorted({match["count"] for match in matches})
    if len(counts) > 1:
        raise DataError(
            f"{path}: two sample sets are mixed ({name}-*-of-{counts[0]} and of-{counts[-1]}); "
            f"remove the older one, or write the set again"
        )
    count = int(counts[0])
    found = {int(match["index"]) for match in matches}
    missing = [f"{name}-{index:05d}-of-{counts[0]}.jsonl" for index in range(count) if index not in found]
    if missing:
        raise DataError(f"{path}: the sample set is incomplete, {len(missing)} of {count} shards missing: {missing[0]}")
    return [join(path, f"{name}-{index:05d}-of-{counts[0]}.jsonl") for index in range(count)]
