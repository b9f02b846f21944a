"""Source files as a sequence of rows: JSON lines, a JSON list, parquet or arrow; or a data set of a library.

Nothing is skipped: a piece that cannot be read becomes a row that says why.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from looptool_jax.data.files import DataError, PathLike, open_binary, parse_json, read_bytes
from looptool_jax.data.importers.data_sets import data_set_values, is_data_set

_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Row:
    """One record of a source file.

    number: counted from 1. line: where it starts in the file, from 1 (in parquet: the row). raw: its text.
    value: what the text says, None where it says nothing readable; then `problem` tells why.
    """

    number: int
    line: int
    raw: str
    value: Any = None
    problem: str = ""


def read_rows(path: PathLike) -> Iterator[Row]:
    """Yield the records of a `.parquet` or `.arrow` file, a JSON list, JSON lines, or a data set (`tfds:`, `hf:`).

    Raises DataError for what cannot be read at all.
    """
    if is_data_set(path):
        return _rows_of(data_set_values(path))
    name = str(path).lower()
    if name.endswith((".parquet", ".arrow")):
        return _rows_of(_arrow_values(path))
    if name.endswith(".jsonl"):
        return _json_lines(path)
    with open_binary(path) as file:
        start = file.read(64).removeprefix(_BOM).lstrip()
    return _json_list(path) if start.startswith(b"[") else _json_lines(path)


def _json_lines(path: PathLike) -> Iterator[Row]:
    number = 0
    with open_binary(path) as file:
        for line, data in enumerate(file, 1):
            data = (data.removeprefix(_BOM) if line == 1 else data).strip()
            if data:
                number += 1
                yield _row(number, line, data)


def _json_list(path: PathLike) -> Iterator[Row]:
    """Element by element; what comes after a broken element cannot be told apart, so it is one unreadable row."""
    text = read_bytes(path).removeprefix(_BOM).decode("utf-8", errors="surrogateescape")
    position, line, number = text.index("[") + 1, 1, 0
    counted = 0
    while True:
        position = _skip(text, position, " \t\r\n,")
        if text.startswith("]", position) and not text[position + 1 :].strip():
            return
        line += text.count("\n", counted, position)
        counted = position
        number += 1
        try:
            _, end = _SCANNER.raw_decode(text, position)
        except (ValueError, RecursionError):
            rest = text[position:].encode("utf-8", errors="surrogateescape").decode("utf-8", errors="backslashreplace")
            yield Row(number, line, rest, problem="not JSON: the list breaks here, nothing after it can be read")
            return
        yield _row(number, line, text[position:end].encode("utf-8", errors="surrogateescape"))
        position = end


def _skip(text: str, position: int, characters: str) -> int:
    while position < len(text) and text[position] in characters:
        position += 1
    return position


def _row(number: int, line: int, data: bytes) -> Row:
    raw = data.decode("utf-8", errors="backslashreplace")
    try:
        return Row(number, line, raw, parse_json(data))
    except ValueError as error:
        return Row(number, line, raw, problem=str(error))


def _rows_of(values: Iterable[Any]) -> Iterator[Row]:
    for number, value in enumerate(values, 1):
        yield _row(number, number, json.dumps(_json_value(value), default=str).encode("ascii"))


def _arrow_values(path: PathLike) -> list[Any]:
    kind = str(path).lower().rsplit(".", 1)[-1]
    try:
        import pyarrow as arrow
        import pyarrow.parquet as parquet
    except ImportError:
        raise DataError(f"{path}: reading {kind} needs pyarrow; install looptool-jax[parquet]") from None

    data = io.BytesIO(read_bytes(path))
    try:
        if kind == "parquet":
            batches = list(parquet.ParquetFile(data).iter_batches(batch_size=1024))
        elif data.getvalue().startswith(b"ARROW1"):
            batches = arrow.ipc.open_file(data).read_all().to_batches()
        else:
            batches = list(arrow.ipc.open_stream(data))
        return [value for batch in batches for value in batch.to_pylist()]
    except (arrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: no readable {kind} file ({str(error).splitlines()[0]})") from None


def _json_value(value: Any) -> Any:
    """An Arrow value as JSON: bytes are text, and a null field is one that the record lacks (Arrow cannot tell)."""
    if isinstance(value, dict):
        return {key: _json_value(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_json_value(item) for item in value]
    return value.decode("utf-8", errors="surrogateescape") if isinstance(value, bytes) else value


_SCANNER = json.JSONDecoder(parse_int=str, parse_float=str)  # finds where a value ends; the value is read by parse_json
