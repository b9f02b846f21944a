"""The tools of simulated dialogues: where they come from, which of them run, and which a dialogue sees."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from random import Random
from typing import Any

from looptool_jax.data.importers.rows import read_rows
from looptool_jax.data.store import DataError, PathLike
from looptool_jax.toolcall import Call, SchemaError, Tool, normalise_tool
from looptool_jax.world import World, execute
from looptool_jax.world.tools import WorldTool, split_tools

NEAR = 4  # tools of one topic that a dialogue gets at a time
TIMEOUT = {"error": "the service timed out; try again"}

Group = tuple[str, ...]


@dataclass(frozen=True, eq=False)
class ToolEntry:
    """A tool, the topic it belongs to (() where none is known), and the world tool that it is, if it is one."""

    tool: Tool
    group: Group = ()
    world: WorldTool | None = None

    @property
    def function(self) -> str:
        """What no two tools of a dialogue share: nobody could say which of them is right."""
        return self.world.leaf.key if self.world else self.tool.name


def read_tools(path: PathLike) -> list[ToolEntry]:
    """Tool documents of a file: OpenAI's list as JSON or JSON lines, or `tools.jsonl` of `synthesize apis`.

    The same document twice is one. Raises DataError with file and line for a document that cannot be read.
    """
    entries: list[ToolEntry] = []
    seen: dict[str, list[Tool]] = {}
    for row in read_rows(path):
        if row.problem:
            raise DataError(f"{path}:{row.line}: {row.problem}")
        try:
            tool = normalise_tool(row.value)
        except SchemaError as error:
            raise DataError(f"{path}:{row.line}: no tool document: {error}") from None
        if tool not in seen.setdefault(tool.name, []):
            seen[tool.name].append(tool)
            place = row.value.get("place")
            group = tuple(map(str, place[:-1])) if isinstance(place, list) else ()
            entries.append(ToolEntry(tool, group, _world_tool(tool)))
    if not entries:
        raise DataError(f"{path}: holds no tool documents")
    return entries


def world_tools() -> list[ToolEntry]:
    """The tools of the procedural world that training may see."""
    return [ToolEntry(tool.tool, (tool.leaf.domain, tool.leaf.topic), tool) for tool in split_tools("train")]


@cache
def _world_tools_by_name() -> dict[str, list[WorldTool]]:
    found: dict[str, list[WorldTool]] = {}
    for tool in split_tools("train"):
        found.setdefault(tool.tool.name, []).append(tool)
    return found


def _world_tool(tool: Tool) -> WorldTool | None:
    """The world tool with this very document. A tool that is merely called alike is somebody else's."""
    return next((known for known in _world_tools_by_name().get(tool.name, ()) if known.tool == tool), None)


def draw_tools(rng: Random, entries: Sequence[ToolEntry], count: int) -> list[ToolEntry]:
    """`count` tools, up to `NEAR` of a topic at a time, so that calls can build on each other.

    A topic is drawn with weight log(n + 1) of its n tools, as in the released code; no function twice. Where there are
    fewer functions than wanted, all are taken.
    """
    rest: dict[Group, list[ToolEntry]] = {}
    for entry in rng.sample(list(entries), len(entries)):
        rest.setdefault(entry.group, []).append(entry)
    chosen: list[ToolEntry] = []
    taken: set[str] = set()
    while rest and len(chosen) < count:
        groups = sorted(rest)
        (group,) = rng.choices(groups, [math.log(len(rest[name]) + 1) for name in groups])
        share = min(NEAR, count - len(chosen))
        while share and rest[group]:
            entry = rest[group].pop()
            if not taken & {entry.function, entry.tool.name}:
                chosen.append(entry)
                taken |= {entry.function, entry.tool.name}
                share -= 1
        if not rest[group]:
            del rest[group]
    return chosen


class Backend:
    """What executes calls of a dialogue's world tools: one world, which remembers what was done in it."""

    def __init__(self, seed: str, entries: Sequence[ToolEntry]) -> None:
        self.tools = {entry.tool.name: entry.world for entry in entries if entry.world}
        self.world = World(seed, self.tools.values())

    def executes(self, call: Call) -> bool:
        return call.name in self.tools

    def execute(self, call: Call) -> dict[str, Any]:
        """The result, {"error": reason} where the call fails."""
        return execute(self.world, call)

    def time_out(self, call: Call) -> dict[str, Any]:
        """As `execute`, but a call that would succeed times out, and nothing is done."""
        result = execute(copy.deepcopy(self.world), call)
        return result if is_error(result) else TIMEOUT

    def facts(self) -> str:
        """What a user of these tools has to know: which records exist, how dates and times are written."""
        if not self.tools:
            return ""
        lines = ["What exists behind the functions:"]
        kinds = {
            (p.kind, p.prefix) for tool in self.tools.values() for p in tool.parameters.values() if p.shape == "id"
        }
        for kind, prefix in sorted(kinds):
            lines.append(f"- {kind}: {', '.join(self.world.records(prefix))}")
        lines.append("- Dates are written YYYY-MM-DD, times HH:MM. Any other value is accepted as it is.")
        return "\n".join(lines)


def is_error(result: Any) -> bool:
    """Whether a result says that its call failed."""
    return isinstance(result, dict) and "error" in result
