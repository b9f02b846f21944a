"""Whether the label of a sample over world tools is right, as far as the generator's knowledge can tell."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from looptool_jax.toolcall.matcher import names_parameter
from looptool_jax.toolcall.records import Call, Sample
from looptool_jax.world.errors import WorldError
from looptool_jax.world.execute import World, execute
from looptool_jax.world.reading import asks_for, occurs, stated, strike, user_text
from looptool_jax.world.tools import WorldTool


def validate(sample: Sample) -> list[str]:
    """Everything wrong with a sample's label, one line each; an empty list is a valid sample.

    Reads tools, messages and target only. Calls: they execute in the world of the dialogue, the user asks for each
    of these tools, every value is written in the dialogue and is the one that is stated for its parameter, and no
    value of the request is left unused. Questions: a shown tool is asked for and lacks exactly these values.
    Refusals: no shown tool is asked for.
    """
    try:
        world = World.of_dialogue(sample.messages, sample.tools)
    except WorldError as error:
        return [str(error)]
    if not sample.messages or sample.messages[-1].role not in ("user", "tool"):
        return ["the dialogue does not end with a user or a tool"]
    if sample.target.is_call:
        return _call_problems(sample, world)
    if sample.target.intent == "clarify":
        return _question_problems(sample, world)
    text = user_text(sample.messages)
    return [f"{tool.tool.name} can do this" for tool in world.tools.values() if asks_for(tool, text)]


def _call_problems(sample: Sample, world: World) -> list[str]:
    problems = []
    said = user_text(sample.messages)
    results = "\n".join(message.content for message in sample.messages if message.role == "tool")
    for call in sample.target.calls:
        result = execute(world, call)
        if "error" in result:
            problems.append(f"{call.name}: {result['error']}")
            continue
        tool = world.tools[call.name]
        if not asks_for(tool, said):
            problems.append(f"{call.name}: the user does not ask for this")
        for name, value in call.arguments.items():
            problems += _value_problems(tool, name, value, said, results)
    if len({str(call.to_json()) for call in sample.target.calls}) < len(sample.target.calls):
        problems.append("the same call twice")
    return problems or _left_out(sample, world)


def _value_problems(tool: WorldTool, name: str, value: Any, said: str, results: str) -> list[str]:
    if isinstance(value, str) and tool.parameters[name].shape == "id" and occurs(value, results):
        return []
    found = stated(tool, name, said)
    if found and value not in found:
        return [f"{tool.tool.name}: {name} is stated as {found[0]!r}"]
    if isinstance(value, bool):
        return [] if found else [f"{tool.tool.name}: nothing is said about {name}"]
    return [f"{tool.tool.name}: {part!r} is not said" for part in _parts(value) if not occurs(part, said)]


def _left_out(sample: Sample, world: World) -> list[str]:
    """Values of the request that neither the label nor an earlier call uses."""
    calls = [*sample.target.calls, *(call for message in sample.messages for call in message.calls)]
    said = user_text(sample.messages)
    used = {str(part) for call in calls for part in _all_parts(call)}
    rest = said
    for part in sorted(used, key=len, reverse=True):
        rest = strike(part, rest)
    problems = [f"{value} is not used" for value in re.findall(r'"[^"]+"|\S*\d\S*', rest)]
    called = {call.name for call in calls if call.name in world.tools}
    keys = {
        parameter.key
        for call in calls
        if call.name in called
        for name, parameter in world.tools[call.name].parameters.items()
        if name in call.arguments
    }
    for tool in world.tools.values():
        if tool.tool.name not in called:
            problems += [f"{tool.tool.name} is asked for, too"] if asks_for(tool, said) else []
            continue
        for name, parameter in tool.parameters.items():
            values = stated(tool, name, said)
            if parameter.shape == "boolean":
                problems += [f"{tool.tool.name}: {name} is left out"] if values and parameter.key not in keys else []
            else:
                unused = [part for value in values for part in _parts(value) if str(part) not in used]
                problems += [f"{tool.tool.name}: {part!r} is stated for {name} and not used" for part in unused]
    return problems


def _question_problems(sample: Sample, world: World) -> list[str]:
    target, text = sample.target, user_text(sample.messages)
    unnamed = [name for name in target.missing if not names_parameter(target.text, name)]
    if unnamed or not target.missing:
        return [f"the question does not name {', '.join(unnamed) or 'anything'}"]
    results = " ".join(message.content for message in sample.messages if message.role == "tool")
    asked = [tool for tool in world.tools.values() if asks_for(tool, text)]
    if not asked:
        return ["the user asks for none of the tools"]
    for tool in asked:
        known = any(_known(tool, name, text, results) for name in target.missing if name in tool.required)
        if set(target.missing) <= set(tool.required) and not known:
            return []
    return [f"{', '.join(target.missing)}: given, or not required"]


def _known(tool: WorldTool, name: str, text: str, results: str) -> bool:
    """Whether the user states the value, or a tool result holds such an id."""
    parameter = tool.parameters[name]
    return (parameter.shape == "id" and f"{parameter.prefix}-" in results) or bool(stated(tool, name, text))


def _all_parts(call: Call) -> list[Any]:
    return [part for value in call.arguments.values() for part in _parts(value)]


def _parts(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list) else list(value.values()) if isinstance(value, dict) else [value]
