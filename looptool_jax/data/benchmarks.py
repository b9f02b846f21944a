"""Benchmarks' requests and tools, from the copy that a user has: nothing of a benchmark comes with the program.

BFCL: the folder with `BFCL_v4_*.json` (or v3), such as `bfcl_eval/data` of the package bfcl-eval; tools of its
multi-turn rows are in `multi_turn_func_doc/`. ACEBench: a checkout of ACEBench/ACEBench, or the folder with its
`data_*.json`. Both are JSON lines. Only what training data is held against is read: no labels.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from looptool_jax.data.files import DataError, file_sha256, parse_json

BENCHMARKS = ("bfcl", "acebench")
ACEBENCH_VARIABLE = "ACEBENCH_DIR"
REMEDIES = {
    "bfcl": "pip install --no-deps bfcl-eval, or name a folder with BFCL_v4_*.json",
    "acebench": f"name a checkout of ACEBench/ACEBench, or set {ACEBENCH_VARIABLE} to one",
}
_BFCL_PACKAGE = "bfcl_eval"
_BFCL_FILE = re.compile(r"BFCL_v\d+_(?!format_sensitivity).+\.json")
_ACEBENCH_LANGUAGES = ("data_all/data_en", "data_all/data_zh")
_ACEBENCH_ROLE = re.compile(r"^(user|system|assistant|tool): ?", re.MULTILINE)


@dataclass(frozen=True)
class ToolSignature:
    """What is compared of a tool."""

    name: str
    parameters: tuple[str, ...]


@dataclass(frozen=True)
class BenchmarkRow:
    """requests: what the user says, a text a turn."""

    id: str
    requests: tuple[str, ...]
    tools: tuple[ToolSignature, ...]


def installed_folder(package: str) -> Path | None:
    """The data folder of an installed package, which is not imported; None where there is none."""
    spec = importlib.util.find_spec(package)
    folder = Path(spec.submodule_search_locations[0]) / "data" if spec and spec.submodule_search_locations else None
    return folder if folder and folder.is_dir() else None


def benchmark_folder(benchmark: str, given: str) -> Path | None:
    """The folder that is given; of "auto" the installed package (bfcl) or $ACEBENCH_DIR, None where there is none.

    Raises DataError where a folder that is named does not exist.
    """
    if given == "auto" and benchmark == "bfcl":
        return installed_folder(_BFCL_PACKAGE)
    named = os.environ.get(ACEBENCH_VARIABLE) if given == "auto" else given
    if not named:
        return None
    if not Path(named).is_dir():
        raise DataError(f"{named}: no such folder; {REMEDIES[benchmark]}")
    return Path(named)


def benchmark_files(benchmark: str, folder: Path) -> list[Path]:
    """The files that are read, in a fixed order. Raises DataError where there are none."""
    if benchmark == "bfcl":
        found = [file for file in folder.glob("BFCL_*.json") if _BFCL_FILE.fullmatch(file.name)]
        documents = sorted(folder.glob("multi_turn_func_doc/*.json"))
    else:
        found = [file for place in ("", *_ACEBENCH_LANGUAGES) for file in (folder / place).glob("data_*.json")]
        documents = []
    if not found:
        raise DataError(f"{folder}: no files of {benchmark} are here; {REMEDIES[benchmark]}")
    return sorted(found) + documents


def files_sha256(folder: Path, files: list[Path]) -> str:
    """One hash (hex) of the names and bytes of files."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.relative_to(folder)} {file_sha256(file)}\n".encode())
    return digest.hexdigest()


def read_benchmark(benchmark: str, files: list[Path]) -> Iterator[BenchmarkRow]:
    """The rows of a benchmark's files; a document of BFCL's multi-turn tools is a row without requests.

    Raises DataError naming file and line.
    """
    requests_of = _bfcl_requests if benchmark == "bfcl" else _acebench_requests
    for file in files:
        is_document = file.parent.name == "multi_turn_func_doc"
        for number, row in json_lines(file, REMEDIES[benchmark]):
            try:
                if is_document:
                    yield BenchmarkRow(f"{file.stem}.{row['name']}", (), (_signature(row),))
                else:
                    tools = tuple(_signature(document) for document in row.get("function", ()))
                    yield BenchmarkRow(row["id"], requests_of(row), tools)
            except (AttributeError, KeyError, TypeError, ValueError) as error:
                raise DataError(f"{file}:{number}: no row of {benchmark} ({error}); {REMEDIES[benchmark]}") from None


def json_lines(file: Path, remedy: str) -> Iterator[tuple[int, Any]]:
    """The JSON values of a file with their line numbers. Raises DataError naming file, line and remedy."""
    for number, line in enumerate(file.read_bytes().splitlines(), 1):
        if line.strip():
            try:
                yield number, parse_json(line)
            except ValueError as error:
                raise DataError(f"{file}:{number}: {error}; {remedy}") from None


def split_turns(question: str) -> list[tuple[str, str]]:
    """ACEBench's flat dialogue as (role, text); what stands before the first role is the user's."""
    parts = _ACEBENCH_ROLE.split(question)
    turns = [("user", parts[0].strip())] if parts[0].strip() else []
    return turns + [(role, text.strip()) for role, text in zip(parts[1::2], parts[2::2], strict=True)]


def _bfcl_requests(row: dict[str, Any]) -> tuple[str, ...]:
    return tuple(message["content"] for turn in row["question"] for message in turn if message["role"] == "user")


def _acebench_requests(row: dict[str, Any]) -> tuple[str, ...]:
    return tuple(text for role, text in split_turns(row["question"]) if role == "user")


def _signature(document: dict[str, Any]) -> ToolSignature:
    parameters = document.get("parameters", document.get("arguments")) or {}
    return ToolSignature(document["name"], tuple(parameters.get("properties") or ()))
