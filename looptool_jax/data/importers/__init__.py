"""Importers: public tool-call data in, samples out, with every record accounted for.

A record either becomes samples (one, or one per assistant step of a dialogue) or is rejected as a whole with its
line and a reason. `read == kept + len(rejected)` always holds.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from looptool_jax.data.files import DataError, PathLike, is_file, join, parse_json
from looptool_jax.data.importers import (
    bfcl_style,
    hermes,
    looptool,
    mcp,
    openai,
    seal_tools,
    sharegpt,
    toolace,
    toolrl,
    xlam,
)
from looptool_jax.data.importers.common import Reject, Source, printable
from looptool_jax.data.importers.rows import Row, read_rows
from looptool_jax.data.store import Shard, write_jsonl, write_samples
from looptool_jax.toolcall.records import Sample

FORMATS = (
    "looptool", "openai", "toolrl", "seal_tools", "sharegpt", "toolace", "xlam", "hermes", "bfcl_style", "mcp",
)  # fmt: skip
REJECTED_NAME = "rejected.jsonl"
_BENCHMARK = re.compile(r"BFCL_v\d+_|berkeley-function-calling-leaderboard", re.IGNORECASE)

_Converter = Callable[[dict[str, Any], Source], list[Sample]]


@dataclass(frozen=True)
class Rejection:
    """A record that became no sample: its first line in the file (from 1), why (`kind: detail`), and its text."""

    line: int
    reason: str
    raw: str

    @property
    def kind(self) -> str:
        return self.reason.split(":")[0]

    def to_json(self) -> dict[str, Any]:
        return {"line": self.line, "reason": self.reason, "raw": self.raw}


@dataclass(frozen=True)
class ImportResult:
    """What came of a file: samples in file order; records read, records kept, and the rejected ones."""

    file: str
    samples: tuple[Sample, ...]
    read: int
    kept: int
    rejected: tuple[Rejection, ...]

    def tally(self) -> Counter[str]:
        """How many records were rejected for each kind of reason."""
        return Counter(rejection.kind for rejection in self.rejected)

    def summary(self) -> str:
        """The counts in words, a line for each kind of reason."""
        lines = [
            f"{self.file}: {self.read} records read, {self.kept} kept ({len(self.samples)} samples), "
            f"{len(self.rejected)} rejected"
        ]
        return "\n".join([*lines, *(f"  {count:6d}  {kind}" for kind, count in self.tally().most_common())])


def import_file(path: PathLike, format: str, *, tools: PathLike | None = None) -> ImportResult:
    """Import one file (JSON lines, a JSON list, parquet or arrow; local or a URL), or a data set (`tfds:`, `hf:`).

    tools: the tool documents of "seal_tools"; `tool.jsonl` beside the file where none is given.
    Raises DataError for an unknown format, a benchmark's file, or a file that cannot be read at all; a record never
    raises.
    """
    refuse_benchmark(path)
    convert = _converter(path, format, tools)
    name = str(path).rstrip("/").rsplit("/", 1)[-1]
    samples: list[Sample] = []
    rejected: list[Rejection] = []
    read = 0
    for row in read_rows(path):
        read += 1
        try:
            samples += _convert(row, convert, Source(format, name, row.line, row.number))
        except Reject as reason:
            rejected.append(Rejection(row.line, printable(str(reason)), row.raw))
    return ImportResult(str(path), tuple(samples), read, read - len(rejected), tuple(rejected))


def read_data_set(source: str) -> Iterator[Sample]:
    """The samples of a data set (`tfds:`, `hf:`) whose rows are samples, or hold one as JSON text in `sample`, as
    published sets do. Raises DataError."""
    for row in read_rows(source):
        try:
            value = row.value
            held = value.get("sample") if isinstance(value, dict) else None
            yield Sample.from_json(parse_json(held) if isinstance(held, str) else value)
        except ValueError as error:
            raise DataError(f"{source}:{row.line}: no sample: {row.problem or error}") from None


def refuse_benchmark(path: PathLike) -> None:
    """Raises DataError where a path names the BFCL benchmark: its rows are for evaluation, never for training."""
    if _BENCHMARK.search(str(path)):
        raise DataError(
            f"{path}: this is the BFCL benchmark, which is for evaluation only (looptool eval bfcl); "
            "import other data for training"
        )


def write_import(result: ImportResult, out_dir: PathLike, shard_size: int = 4096) -> list[Shard]:
    """Write the samples as a shard set and the rest as `rejected.jsonl`, print the counts, return the files.

    Raises DataError: `out_dir` is no folder, or a file cannot be written.
    """
    if str(out_dir).endswith(".jsonl") or is_file(out_dir):
        raise DataError(f"{out_dir}: the results of an import are several files; name a folder")
    shards = write_samples(out_dir, result.samples, shard_size)
    file = join(out_dir, REJECTED_NAME)
    digest = write_jsonl(file, (rejection.to_json() for rejection in result.rejected))
    print(f"{result.summary()}\nsamples -> {out_dir}" + (f", reasons -> {file}" if result.rejected else ""))
    return [*shards, Shard(file, digest, len(result.rejected))]


def _converter(path: PathLike, format: str, tools: PathLike | None) -> _Converter:
    if format == "seal_tools":
        *folder, _ = str(path).rsplit("/", 1)
        beside = "/".join([*folder, "tool.jsonl"])
        return partial(seal_tools.convert, documents=seal_tools.read_documents(tools or beside))
    converters: dict[str, _Converter] = {
        "looptool": looptool.convert,
        "openai": openai.convert,
        "toolrl": toolrl.convert,
        "sharegpt": sharegpt.convert,
        "toolace": toolace.convert,
        "xlam": xlam.convert,
        "hermes": hermes.convert,
        "bfcl_style": bfcl_style.convert,
        "mcp": mcp.convert,
    }
    if format not in converters:
        raise DataError(f"unknown import format {format!r}; known: {', '.join(FORMATS)}")
    if tools is not None:
        raise DataError(f"the format {format} carries its tools in the file; leave the tool documents away")
    return converters[format]


def _convert(row: Row, convert: _Converter, source: Source) -> list[Sample]:
    if row.problem:
        raise Reject("unreadable record", row.problem)
    if not isinstance(row.value, dict):
        raise Reject("unreadable record", f"expected an object, found {type(row.value).__name__}")
    return convert(row.value, source)
