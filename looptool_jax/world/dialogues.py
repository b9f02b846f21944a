"""Builders of dialogues: from tools and a world to messages and the one right next step.

Every builder draws values, words the request and returns a Scene whose target it has executed in the world.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from looptool_jax.toolcall.records import Call, Message, Target
from looptool_jax.world import wording
from looptool_jax.world.errors import WorldError
from looptool_jax.world.execute import World, execute
from looptool_jax.world.tools import WorldTool
from looptool_jax.world.trees import Parameter
from looptool_jax.world.values import draw, json_type
from looptool_jax.world.wording import Order

Arguments = dict[str, Any]

_ORDINALS = {2: ("first", "second", "last"), 3: ("first", "second", "third", "last")}
_PLACES = {"first": 0, "second": 1, "third": 2, "last": -1}


@dataclass(frozen=True)
class Scene:
    """Messages up to the step that is wanted, and that step."""

    messages: tuple[Message, ...]
    target: Target


def one_call(rng: Random, world: World, tool: WorldTool) -> Scene:
    """One request, one call."""
    arguments = draw_arguments(rng, world, tool)
    return _ask(world, wording.request(rng, Order(tool, arguments)), [_call(tool, arguments)])


def same_tool(rng: Random, world: World, tool: WorldTool) -> Scene:
    """One request, two or three calls of one tool. The tool needs at least one parameter (see `repeatable`)."""
    count = rng.choice((2, 2, 3))
    given = given_properties(rng, tool)
    varied = [name for name in given if _can_vary_alone(tool, given, name)]
    if varied and rng.random() < 0.3:
        name = rng.choice(varied)
        shared = draw_arguments(rng, world, tool, given)
        values = _distinct_values(rng, world, tool.parameters[name], count)
        orders = [Order(tool, shared | {name: value}) for value in values]
        text = wording.request_each(rng, orders, name)
    else:
        lists = _distinct_arguments(rng, world, tool, given, count)
        orders = [Order(tool, arguments) for arguments in lists]
        text = wording.requests(rng, orders)
    return _ask(world, text, [_call(tool, order.arguments) for order in orders])


def several_tools(rng: Random, world: World, tools: Sequence[WorldTool]) -> Scene:
    """One request, one call of each tool."""
    orders: list[Order] = []
    for tool in tools:
        said = [value for order in orders for value in order.arguments.values()]
        orders.append(Order(tool, draw_arguments(rng, world, tool, avoid=said)))
    return _ask(world, wording.requests(rng, orders), [_call(order.tool, order.arguments) for order in orders])


def missing_values(rng: Random, world: World, tool: WorldTool) -> Scene:
    """A request without one or two required values: the right step is a question."""
    arguments, missing = _incomplete(rng, world, tool)
    question = Target(text=wording.clarify(rng, tool, missing), intent="clarify", missing=missing)
    return Scene((_user(wording.request(rng, Order(tool, arguments))),), question)


def no_tool(rng: Random, world: World, absent: WorldTool) -> Scene:
    """A request that none of the shown tools can fulfil."""
    text = wording.request(rng, Order(absent, draw_arguments(rng, world, absent)))
    return Scene((_user(text),), Target(text=wording.refuse(rng), intent="refuse"))


def follow_up(rng: Random, world: World, first: WorldTool, second: WorldTool) -> Scene:
    """The user goes on with a record that the first call found or made."""
    history, result = _answered(rng, world, first)
    record, reference = _referred(rng, result)
    arguments = draw_arguments(rng, world, second)
    arguments[second.ids[0]] = record
    text = wording.request(rng, Order(second, arguments, reference))
    return _continue(world, (*history, _user(text)), [_call(second, arguments)])


def chained(rng: Random, world: World, first: WorldTool, second: WorldTool) -> Scene:
    """One request for two dependent calls; the first has been made, the second is wanted."""
    wanted = draw_arguments(rng, world, first)
    call = _call(first, wanted)
    result = execute(world, call)
    record, reference = _referred(rng, result)
    arguments = draw_arguments(rng, world, second)
    arguments[second.ids[0]] = record
    text = wording.chain(rng, Order(first, wanted), Order(second, arguments, reference))
    messages = (_user(text), _assistant(call), _result(first, result))
    return _continue(world, messages, [_call(second, arguments)])


def corrected(rng: Random, world: World, tool: WorldTool) -> Scene:
    """The first call failed on one value (see `correctable`); the user gives the right one."""
    arguments = draw_arguments(rng, world, tool)
    name = rng.choice(correctable(tool))
    parameter = tool.parameters[name]
    if parameter.shape == "id":
        wrong, way = world.unknown_id(rng, parameter.prefix), "correct"
    else:
        wrong, way = _other_value(rng, world, parameter, arguments[name]), "instead"
        world.unavailable.add(wrong)
    failed = _call(tool, arguments | {name: wrong})
    result = execute(world, failed)
    messages = [_user(wording.request(rng, Order(tool, failed.arguments))), _assistant(failed), _result(tool, result)]
    messages += [_text(wording.report(result)), _user(wording.give(rng, way, tool, {name: arguments[name]}))]
    return _continue(world, tuple(messages), [_call(tool, arguments)])


def supplied(rng: Random, world: World, tool: WorldTool) -> Scene:
    """The assistant has asked for missing values; the user gives them."""
    arguments, missing = _incomplete(rng, world, tool)
    values = draw_arguments(rng, world, tool, [*arguments, *missing])
    later = {name: values[name] for name in missing}
    messages = (
        _user(wording.request(rng, Order(tool, arguments))),
        _text(wording.clarify(rng, tool, missing)),
        _user(wording.give(rng, "supply", tool, later)),
    )
    complete = {name: (arguments | later)[name] for name in tool.parameters if name in values}
    return _continue(world, messages, [_call(tool, complete)])


def repeated(rng: Random, world: World, tool: WorldTool) -> Scene:
    """After one call the user wants the same with one value changed."""
    arguments = draw_arguments(rng, world, tool)
    first = _call(tool, arguments)
    result = execute(world, first)
    name = tool.ids[0] if tool.leaf.effect == "delete" else rng.choice(list(arguments))
    changed = arguments | {name: _other_value(rng, world, tool.parameters[name], arguments[name])}
    messages = (
        _user(wording.request(rng, Order(tool, arguments))),
        *_done(tool, first, result),
        _user(wording.repeat(rng, Order(tool, {name: changed[name]}))),
    )
    return _continue(world, messages, [_call(tool, changed)])


def new_topic(rng: Random, world: World, first: WorldTool, second: WorldTool) -> Scene:
    """After one call the user wants something unrelated."""
    history, _ = _answered(rng, world, first)
    arguments = draw_arguments(rng, world, second)
    text = wording.request(rng, Order(second, arguments))
    return _continue(world, (*history, _user(text)), [_call(second, arguments)])


def repeatable(tool: WorldTool) -> bool:
    """Whether the tool needs something, so that its calls can differ."""
    return bool(tool.leaf.needs)


def linked(first: WorldTool, second: WorldTool) -> bool:
    """Whether the second tool works on the records that the first one makes or finds."""
    prefixes = [second.parameters[name].prefix for name in second.ids]
    return first.leaf.effect in ("create", "search") and first.leaf.prefix in prefixes and first.leaf is not second.leaf


def correctable(tool: WorldTool) -> list[str]:
    """Required properties on which a call can fail and be put right: ids, dates and times."""
    shapes = {name: tool.parameters[name] for name in tool.required}
    return [name for name, p in shapes.items() if p.shape == "id" or p.kind in ("date", "time")]


def given_properties(rng: Random, tool: WorldTool) -> list[str]:
    """The properties that a user gives, in schema order: all required ones, some of the others."""
    return [name for name in tool.parameters if name in tool.required or rng.random() < 0.45]


def draw_arguments(
    rng: Random, world: World, tool: WorldTool, given: Sequence[str] | None = None, avoid: Sequence[Any] = ()
) -> Arguments:
    """Values for the given properties (drawn if None), in schema order; no value occurs twice, no id is in `avoid`."""
    given = given_properties(rng, tool) if given is None else given
    arguments: Arguments = {}
    for name in tool.parameters:
        if name in given:
            parameter = tool.parameters[name]
            value = draw_value(rng, world, parameter)
            while (parameter.shape != "boolean" and _taken(value, arguments.values())) or (
                parameter.shape == "id" and value in avoid
            ):
                value = draw_value(rng, world, parameter)
            arguments[name] = value
    for kind in ("date", "time"):
        names = [name for name in arguments if tool.parameters[name].kind == kind]
        by_leaf = sorted(names, key=lambda name: tool.leaf.parameters.index(tool.parameters[name]))
        for name, value in zip(by_leaf, sorted(arguments[name] for name in names), strict=True):
            arguments[name] = value
    return arguments


def draw_value(rng: Random, world: World, parameter: Parameter) -> Any:
    """A value of a parameter; ids are those of existing records."""
    if parameter.shape == "id":
        return rng.choice([record for record in world.records(parameter.prefix) if record not in world.deleted])
    return draw(rng, parameter)


def _taken(value: Any, others: Any) -> bool:
    """Whether a value, or a part of it, is among the others or their parts."""
    parts = {str(part) for part in _parts(value)}
    return any(str(part) in parts for other in others for part in _parts(other))


def _parts(value: Any) -> list[Any]:
    return value if isinstance(value, list) else list(value.values()) if isinstance(value, dict) else [value]


def _other_value(rng: Random, world: World, parameter: Parameter, value: Any) -> Any:
    while (other := draw_value(rng, world, parameter)) == value:
        pass
    return other


def _can_vary_alone(tool: WorldTool, given: Sequence[str], name: str) -> bool:
    """Whether other values of a property make sense beside the same others. Two dates stand in an order."""
    parameter = tool.parameters[name]
    if json_type(parameter) != "string" or parameter.kind in ("text", "remark") or _ordered(tool, given, name):
        return False
    return tool.leaf.effect != "delete" or parameter.shape == "id"


def _ordered(tool: WorldTool, given: Sequence[str], name: str) -> bool:
    kind = tool.parameters[name].kind
    return kind in ("date", "time") and sum(tool.parameters[other].kind == kind for other in given) > 1


def _distinct_values(rng: Random, world: World, parameter: Parameter, count: int) -> list[Any]:
    values: list[Any] = []
    while len(values) < min(count, len(parameter.values) or count):
        value = draw_value(rng, world, parameter)
        if value not in values:
            values.append(value)
    return values


def _distinct_arguments(
    rng: Random, world: World, tool: WorldTool, given: Sequence[str], count: int
) -> list[Arguments]:
    """Argument lists in which one required value differs everywhere: the id, or what the leaf needs first."""
    needs = [name for name in tool.required if tool.parameters[name] in tool.leaf.needs]
    varied = next((name for name in needs if tool.parameters[name].shape == "id"), needs[0])
    found: list[Arguments] = []
    while len(found) < min(count, len(tool.parameters[varied].values) or count):
        arguments = draw_arguments(rng, world, tool, given)
        if all(arguments[varied] != other[varied] for other in found):
            found.append(arguments)
    return found


def _incomplete(rng: Random, world: World, tool: WorldTool) -> tuple[Arguments, tuple[str, ...]]:
    """Arguments that lack one or two required properties, and these properties in schema order."""
    count = 2 if len(tool.required) > 1 and rng.random() < 0.2 else 1
    dropped = rng.sample(tool.required, count)
    missing = tuple(name for name in tool.parameters if name in dropped)
    given = [name for name in given_properties(rng, tool) if name not in missing]
    return draw_arguments(rng, world, tool, given), missing


def _answered(rng: Random, world: World, tool: WorldTool) -> tuple[tuple[Message, ...], dict[str, Any]]:
    """A finished exchange with one call, and its result."""
    arguments = draw_arguments(rng, world, tool)
    call = _call(tool, arguments)
    result = execute(world, call)
    return (_user(wording.request(rng, Order(tool, arguments))), *_done(tool, call, result)), result


def _done(tool: WorldTool, call: Call, result: dict[str, Any]) -> tuple[Message, ...]:
    return _assistant(call), _result(tool, result), _text(wording.report(result))


def _referred(rng: Random, result: dict[str, Any]) -> tuple[str, str]:
    """A record of a result and how to refer to it."""
    if "results" in result:
        ordinal = rng.choice(_ORDINALS[len(result["results"])])
        return result["results"][_PLACES[ordinal]], f"the {ordinal}"
    return next(value for name, value in result.items() if name.endswith("_id")), "that"


def _ask(world: World, text: str, calls: list[Call]) -> Scene:
    return _continue(world, (_user(text),), calls)


def _continue(world: World, messages: tuple[Message, ...], calls: list[Call]) -> Scene:
    """The scene whose target are these calls, which the world has to accept."""
    for call in calls:
        result = execute(world, call)
        if "error" in result:
            raise WorldError(f"{call.name}: the label does not execute: {result['error']}")
    return Scene(messages, Target(tuple(calls)))


def _call(tool: WorldTool, arguments: Arguments) -> Call:
    return Call(tool.tool.name, dict(arguments))


def _user(text: str) -> Message:
    return Message("user", text)


def _text(text: str) -> Message:
    return Message("assistant", text)


def _assistant(call: Call) -> Message:
    return Message("assistant", calls=(call,))


def _result(tool: WorldTool, result: dict[str, Any]) -> Message:
    return Message("tool", json.dumps(result), name=tool.tool.name)
