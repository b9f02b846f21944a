"""Seal-Tools: `{id, query, calling: [{api, parameters, responses}]}` and tool documents in a file of their own.

A call may take an earlier call's output as `API_call_0`. That output does not exist yet when the assistant answers,
and placeholders are forbidden (paper, Figure 7, note 3), so the label is cut to its first step: the calls that depend
on no other. The later ones are kept in `extra["later_calls"]`.

The tools shown are the called ones and 2 to 6 others, half of them from the same field, chosen and ordered by hashes
of the record's id: the same record always gets the same tools.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Any

from looptool_jax.data.files import DataError, PathLike
from looptool_jax.data.importers.common import (
    Reject,
    Source,
    Step,
    answer_target,
    build_samples,
    read_list,
    read_object,
    read_text,
)
from looptool_jax.data.importers.rows import read_rows
from looptool_jax.toolcall.records import Call, Message, Sample, Tool
from looptool_jax.toolcall.schema import SchemaError, normalise_tool

_REFERENCE = re.compile(r"API_call_\d+")


@dataclass(frozen=True)
class Documents:
    """The tool documents by name, and the names of each field, in file order."""

    tools: dict[str, Tool]
    fields: dict[str, tuple[str, ...]]
    field_of: dict[str, str]


def read_documents(path: PathLike) -> Documents:
    """Read `tool.jsonl`. Raises DataError with the line where a document cannot be read."""
    tools: dict[str, Tool] = {}
    field_of: dict[str, str] = {}
    for row in read_rows(path):
        try:
            if row.problem or not isinstance(row.value, dict):
                raise Reject("unreadable tool document", row.problem)
            tool = read_document(row.value)
        except (Reject, SchemaError) as error:
            raise DataError(f"{path}:{row.line}: {error}") from None
        tools[tool.name] = tool
        field_of[tool.name] = str(row.value.get("field", ""))
    if not tools:
        raise DataError(f"{path}: holds no tool documents")
    fields: dict[str, list[str]] = {}
    for name, field in field_of.items():
        fields.setdefault(field, []).append(name)
    return Documents(tools, {field: tuple(names) for field, names in fields.items()}, field_of)


def read_document(raw: dict[str, Any]) -> Tool:
    """A document of `tool.jsonl`. Raises Reject, SchemaError."""
    parameters = {
        "type": "object",
        "properties": read_object(raw.get("parameters"), "parameters"),
        "required": read_list(raw.get("required"), "required"),
    }
    return normalise_tool(
        {"name": read_text(raw, "api_name"), "description": read_text(raw, "api_description"), "parameters": parameters}
    )


def convert(record: dict[str, Any], source: Source, documents: Documents) -> list[Sample]:
    """One sample per record. Raises Reject."""
    query = read_text(record, "query")
    if not query.strip():
        raise Reject("empty user turn", "query")
    calls = [_read_call(raw) for raw in read_list(record.get("calling"), "calling")]
    first = tuple(call for call in calls if not _REFERENCE.search(str(call.arguments)))
    later = [call.to_json() for call in calls if call not in first]
    if not first:
        raise Reject("no first step", "every call needs another call's output" if calls else "calling is empty")
    unknown = [call.name for call in calls if call.name not in documents.tools]
    if unknown:
        raise Reject("the label does not fit its tools", f"no document for {', '.join(unknown)}")
    identifier = record.get("id")
    key = identifier if isinstance(identifier, str) else source.sample_id
    tools = [documents.tools[name] for name in _shown(key, [call.name for call in calls], documents)]
    fields = {key: value for key, value in record.items() if key not in ("query", "calling")}
    step = Step((Message("user", query),), answer_target(first, ""), {"later_calls": later} if later else {})
    return build_samples([step], tools, source, fields)


def _read_call(raw: Any) -> Call:
    if not isinstance(raw, dict):
        raise Reject("unreadable call", f"expected an object, found {type(raw).__name__}")
    return Call(read_text(raw, "api"), read_object(raw.get("parameters"), "parameters"))


def _shown(key: str, called: list[str], documents: Documents) -> list[str]:
    """Names of the tools to show: the called ones and the distractors, in an order that gives nothing away."""
    names = list(dict.fromkeys(called))
    count = 2 + _hash(key, "count") % 5
    fields = dict.fromkeys(documents.field_of[name] for name in names)
    near = [name for field in fields for name in documents.fields[field]]
    names += _pick(key, "near", near, count // 2, names)
    names += _pick(key, "any", list(documents.tools), len(set(called)) + count - len(names), names)
    return sorted(names, key=lambda name: _hash(key, name))


def _pick(key: str, purpose: str, pool: list[str], count: int, taken: list[str]) -> list[str]:
    """`count` names of the pool that are not taken, or all there are."""
    free = [name for name in pool if name not in taken]
    picked: list[str] = []
    for draw in range(min(count, len(free))):
        picked.append(free.pop(_hash(key, f"{purpose}-{draw}") % len(free)))
    return picked


def _hash(key: str, purpose: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{key}\n{purpose}".encode("utf-8", "surrogatepass")).digest()[:8], "big")
