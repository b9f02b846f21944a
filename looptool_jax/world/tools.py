"""Concrete tools: one leaf path of the context tree and one of the constraint tree make a tool document."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from random import Random
from typing import Any

from looptool_jax.toolcall.records import Tool
from looptool_jax.world.errors import WorldError
from looptool_jax.world.trees import Leaf, Parameter, Split, constraints, leaves, split_leaves
from looptool_jax.world.values import coined, json_type, schema

VARIANTS = 48
"""How many concrete tools are drawn from a leaf."""


@dataclass(frozen=True, eq=False)
class WorldTool:
    """A tool document with the leaf it came from and the parameter behind every property (in schema order)."""

    tool: Tool
    leaf: Leaf
    parameters: dict[str, Parameter]

    @property
    def required(self) -> tuple[str, ...]:
        return self.tool.required

    @property
    def ids(self) -> tuple[str, ...]:
        """The properties that take the id of a record."""
        return tuple(name for name, parameter in self.parameters.items() if parameter.shape == "id")


@cache
def world_tool(leaf_key: str, variant: int) -> WorldTool:
    """Variant number `variant` (0 <= variant < VARIANTS) of a leaf: always the same tool."""
    leaf = leaves()[leaf_key]
    rng = Random(f"tool/{leaf_key}/{variant}")
    path = {
        point: rng.choices(branches, [branch.weight for branch in branches])[0].settings
        for point, branches in constraints().items()
    }
    words = f"{rng.choice(leaf.verbs)} {rng.choice(leaf.nouns)}".split()
    if path["service"].get("prefix"):
        words.insert(0, rng.choice(services()).lower())
    shown = _shown_parameters(rng, leaf, path)
    names = {parameter.key: _case(parameter.key.split("_"), path["naming"]["parameter"]) for parameter in shown}
    properties: dict[str, Any] = {}
    required: list[str] = []
    for parameter in shown:
        promoted = parameter.shape != "boolean" and rng.random() < path["optional"]["required"]
        needed = parameter in leaf.needs or promoted
        properties[names[parameter.key]] = document = schema(parameter, path["description"]["parameters"])
        if needed:
            required.append(names[parameter.key])
        elif rng.random() < path["optional"]["default"] and _has_default(parameter):
            document["default"] = _default(parameter)
    tool = Tool(
        _case(words, path["naming"]["tool"]),
        _describe(leaf.doc, path["description"]["tool"]),
        {"type": "object", "properties": properties, "required": required},
    )
    return WorldTool(tool, leaf, {names[parameter.key]: parameter for parameter in shown})


def _shown_parameters(rng: Random, leaf: Leaf, path: dict[str, dict[str, Any]]) -> list[Parameter]:
    optional = [parameter for parameter in leaf.may if json_type(parameter) in path["types"]["allow"]]
    wanted = rng.randint(path["parameters"]["least"], path["parameters"]["most"]) - len(leaf.needs)
    drawn = rng.sample(optional, max(0, min(wanted, len(optional))))
    shown = [*leaf.needs, *sorted(drawn, key=leaf.may.index)]
    if rng.random() < 0.25:
        rng.shuffle(shown)
    return shown


def _has_default(parameter: Parameter) -> bool:
    return parameter.shape in ("enum", "boolean") or json_type(parameter) in ("integer", "number")


def _default(parameter: Parameter) -> Any:
    """False, the first value of an enum, or one."""
    if parameter.shape == "boolean":
        return False
    if parameter.shape == "enum":
        return parameter.values[0]
    return 1


def _case(words: list[str], convention: str) -> str:
    if convention == "camel":
        return words[0] + "".join(word.capitalize() for word in words[1:])
    return {"snake": "_", "kebab": "-", "joined": ""}[convention].join(words)


def _describe(doc: str, style: str) -> str:
    if style == "third_person":
        verb, _, rest = doc.partition(" ")
        doc = f"{_third_person(verb)} {rest}"
    return doc[0].upper() + doc[1:]


def _third_person(verb: str) -> str:
    if verb.endswith(("s", "sh", "ch", "x", "z", "o")):
        return verb + "es"
    if verb.endswith("y") and verb[-2] not in "aeiou":
        return verb[:-1] + "ies"
    return verb + "s"


@cache
def services() -> tuple[str, ...]:
    """Made-up service names that stand in front of some tool names."""
    rng = Random("services")
    return tuple(sorted({coined(rng) for _ in range(200)}))


@cache
def split_tools(split: Split) -> tuple[WorldTool, ...]:
    """Every tool of a split."""
    return tuple(world_tool(leaf.key, variant) for leaf in split_leaves(split) for variant in range(VARIANTS))


def squash(name: str) -> str:
    """A name without case and separators."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


@cache
def _leaf_index() -> dict[str, Leaf]:
    index: dict[str, Leaf] = {}
    for leaf in leaves().values():
        for verb in leaf.verbs:
            for noun in leaf.nouns:
                other = index.setdefault(squash(verb + noun), leaf)
                if other is not leaf:
                    raise WorldError(f"trees: {leaf.key} and {other.key} both make the tool name {verb} {noun}")
    return index


@cache
def _leaf_of(name: str) -> Leaf | None:
    squashed, index = squash(name), _leaf_index()
    if squashed in index:
        return index[squashed]
    prefixes = {service.lower() for service in services()}
    cuts = (cut for cut in range(1, len(squashed)) if squashed[:cut] in prefixes and squashed[cut:] in index)
    return next((index[squashed[cut:]] for cut in cuts), None)


def recognise(tool: Tool) -> WorldTool:
    """The world tool behind a document. Raises WorldError for a tool that is not of this world."""
    leaf = _leaf_of(tool.name)
    if leaf is None:
        raise WorldError(f"{tool.name} is not a tool of the procedural world")
    known = {squash(parameter.key): parameter for parameter in leaf.parameters}
    unknown = [name for name in tool.properties if squash(name) not in known]
    if unknown:
        raise WorldError(f"{tool.name}: the world knows no parameter {unknown[0]} of this tool")
    return WorldTool(tool, leaf, {name: known[squash(name)] for name in tool.properties})


def is_of_world(tool: Tool) -> bool:
    """Whether `recognise` knows the tool."""
    try:
        recognise(tool)
    except WorldError:
        return False
    return True
