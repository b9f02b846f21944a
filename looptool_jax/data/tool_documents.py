"""Lists of tools from the documents that describe them: OpenAPI, MCP, Seal-Tools and OpenAI tool lists.

A document either becomes a tool or is rejected with its place and a reason: `read == len(tools) + len(rejected)`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from looptool_jax.data import openapi
from looptool_jax.data.files import DataError, PathLike, parse_json, read_text
from looptool_jax.data.importers.common import Reject, check_storable, printable
from looptool_jax.data.importers.rows import read_rows
from looptool_jax.data.importers.seal_tools import read_document
from looptool_jax.data.store import write_jsonl
from looptool_jax.data.yaml_text import parse_yaml
from looptool_jax.toolcall.records import Tool
from looptool_jax.toolcall.schema import SchemaError, normalise_tool

TOOL_FORMATS = ("openapi", "mcp", "seal_tools", "openai")

_Entry = tuple[str, Any, Callable[[], Tool]]
"""Where a document stands, its text, and what reads it."""


@dataclass(frozen=True)
class RejectedTool:
    """A document that became no tool: where it stands in its file, why, and what it says."""

    place: str
    reason: str
    raw: Any

    def to_json(self) -> dict[str, Any]:
        return {"place": self.place, "reason": self.reason, "raw": self.raw}


@dataclass(frozen=True)
class ToolDocuments:
    """The tools of a file in its order, no two of one name, and the documents that are none."""

    file: str
    tools: tuple[Tool, ...]
    read: int
    rejected: tuple[RejectedTool, ...]

    def summary(self) -> str:
        """The counts in words, a line for each kind of reason."""
        head = f"{self.file}: {self.read} tool documents read, {len(self.tools)} tools, {len(self.rejected)} rejected"
        tally = Counter(rejected.reason.split(":")[0] for rejected in self.rejected)
        return "\n".join([head, *(f"  {count:6d}  {kind}" for kind, count in tally.most_common())])


def read_tools(path: PathLike, format: str) -> ToolDocuments:
    """The tools of a file, local or at a URL: JSON or JSON lines, OpenAPI also YAML. Nothing else is fetched.

    format: "openapi" (3.x: an operation is a tool), "mcp" (results of `tools/list`, one or several pages), "openai"
    (tools in OpenAI's wrapper or bare), "seal_tools" (its tool.jsonl). A second tool of one name is rejected.
    Raises DataError for an unknown format or a file that cannot be read as one of that format; a document never raises.
    """
    readers = {"openapi": _operations, "mcp": _listed, "openai": _listed, "seal_tools": _seal_tools}
    if format not in readers:
        raise DataError(f"unknown format of tool documents {format!r}; known: {', '.join(TOOL_FORMATS)}")
    places: dict[str, str] = {}
    tools: list[Tool] = []
    rejected: list[RejectedTool] = []
    for place, raw, read in readers[format](path):
        try:
            tool = read()
            check_storable(tool.to_json())
            if tool.name in places:
                raise Reject("the name is taken", f"{tool.name} is at {places[tool.name]} already")
        except (SchemaError, Reject) as error:
            reason = str(error if isinstance(error, Reject) else Reject("unreadable tool document", str(error)))
            rejected.append(RejectedTool(place, printable(" ".join(reason.split())), raw))
            continue
        places[tool.name] = place
        tools.append(tool)
    return ToolDocuments(str(path), tuple(tools), len(tools) + len(rejected), tuple(rejected))


def write_tools(documents: ToolDocuments, out: PathLike) -> None:
    """Write the tools as JSON lines and the rejected documents beside them, print the counts. Raises DataError."""
    if not str(out).endswith(".jsonl"):
        raise DataError(f"{out}: tools are written as JSON lines; name a file that ends in .jsonl")
    write_jsonl(out, (tool.to_json() for tool in documents.tools))
    rejected = f"{str(out).removesuffix('.jsonl')}.rejected.jsonl"
    write_jsonl(rejected, (each.to_json() for each in documents.rejected))
    print(f"{documents.summary()}\n{out}, {rejected}")


def _operations(path: PathLike) -> Iterator[_Entry]:
    text = read_text(path)
    try:
        document = parse_yaml(text) if str(path).lower().endswith((".yaml", ".yml")) else parse_json(text)
    except ValueError as error:
        raise DataError(f"{path}: {error}") from None
    for place, operation, item in openapi.operations(document, str(path)):
        yield place, operation, partial(openapi.operation_tool, document, place, operation, item)


def _seal_tools(path: PathLike) -> Iterator[_Entry]:
    for row in read_rows(path):
        yield f"line {row.line}", row.raw, partial(_read, row.value, row.problem, read_document)


def _listed(path: PathLike) -> Iterator[_Entry]:
    """The members of a list, of `tools`, or of the `tools` of a JSON-RPC result; of one value, or of one a line."""
    try:
        pages = [("", parse_json(read_text(path)), "")]
    except ValueError as whole:
        rows = list(read_rows(path))
        if isinstance(whole, DataError) or all(row.problem for row in rows):
            raise DataError(f"{path}: {str(whole).removeprefix(f'{path}: ')}") from None
        pages = [(f"line {row.line}", row.value if not row.problem else row.raw, row.problem) for row in rows]
    for line, page, problem in pages:
        number = 0
        for member in page if isinstance(page, list) else [page]:
            tools = _page(member)
            for document in [member] if tools is None else tools:
                number += 1
                place = f"{line}, tool {number}" if line else f"tool {number}"
                yield place, document, partial(_read, document, problem, normalise_tool)


def _page(value: Any) -> list[Any] | None:
    """The list of tools in a page; None where the value is no page."""
    value = value.get("result", value) if isinstance(value, dict) else value
    tools = value.get("tools") if isinstance(value, dict) else None
    return tools if isinstance(tools, list) else None


def _read(value: Any, problem: str, read: Callable[[Any], Tool]) -> Tool:
    if problem or not isinstance(value, dict):
        raise Reject("unreadable tool document", problem or f"expected an object, found {type(value).__name__}")
    return read(value)
