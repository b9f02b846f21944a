"""The state of a world and the execution of calls on it.

A state is fixed by its seed: which records exist, what a lookup answers, which id a new record gets. Executing a call
returns a JSON object; what goes wrong is reported as {"error": ...}, never raised.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable
from random import Random
from typing import Any

from looptool_jax.toolcall.records import Call, Message, Tool
from looptool_jax.toolcall.schema import check_call
from looptool_jax.world.tools import WorldTool, recognise
from looptool_jax.world.trees import Leaf
from looptool_jax.world.values import KINDS, draw_id

_ID = re.compile(r"(?<![\w-])([A-Z]{2})-\d{3,4}(?![\w-])")
_INVENTORY = 8


class World:
    """The state behind a set of tools: records by id prefix, deleted records, and values that are refused.

    `open_ids` holds ids that exist although the inventory lacks them (what a dialogue mentions).
    """

    def __init__(self, seed: str, tools: Iterable[WorldTool]):
        self.seed = seed
        self.tools = {tool.tool.name: tool for tool in tools}
        self.deleted: set[str] = set()
        self.unavailable: set[str] = set()
        self.open_ids: set[str] = set()
        self._records: dict[str, list[str]] = {}
        self._calls = 0

    def records(self, prefix: str) -> list[str]:
        """Ids of the records with this prefix; the first eight are fixed by the seed."""
        if prefix not in self._records:
            rng = Random(f"records/{self.seed}/{prefix}")
            self._records[prefix] = [draw_id(rng, prefix) for _ in range(_INVENTORY)]
        return self._records[prefix]

    def exists(self, record_id: str) -> bool:
        """Whether a record with this id exists and is not deleted."""
        known = record_id in self.open_ids or record_id in self.records(record_id.partition("-")[0])
        return known and record_id not in self.deleted

    def unknown_id(self, rng: Random, prefix: str) -> str:
        """An id that no record has."""
        while (record_id := draw_id(rng, prefix)) in self.records(prefix):
            pass
        return record_id

    @staticmethod
    def of_dialogue(messages: Iterable[Message], tools: Iterable[Tool]) -> World:
        """The smallest world in which a dialogue makes sense: what users and tools mention exists, apart from what
        a tool called unknown, cancelled or not available. Raises WorldError where a tool is not of this world."""
        world = World("dialogue", map(recognise, tools))
        for message in messages:
            mentioned = {found.group() for found in _ID.finditer(message.content)}
            if message.role == "user":
                world.open_ids |= mentioned
            elif message.role == "tool":
                result = _json_object(message.content)
                if "error" in result:
                    world.open_ids -= mentioned
                    world.unavailable |= set(re.findall(r"(\S+) is not available", str(result["error"])))
                elif result.get("status") == "deleted":
                    world.deleted |= mentioned
                else:
                    world.open_ids |= mentioned
        return world


def execute(world: World, call: Call) -> dict[str, Any]:
    """Run a call and change the world. The result is a JSON object, {"error": reason} if the call fails."""
    tool = world.tools.get(call.name)
    if tool is None:
        return {"error": f"unknown tool {call.name}"}
    problems = check_call(call, [tool.tool])
    if problems:
        return {"error": problems[0]}
    error = _refused(world, tool, call.arguments)
    if error:
        return {"error": error}
    arguments = {tool.parameters[name].key: value for name, value in call.arguments.items()}
    world._calls += 1
    return _EFFECTS[tool.leaf.effect](world, tool.leaf, arguments)


def _refused(world: World, tool: WorldTool, arguments: dict[str, Any]) -> str:
    """Why the world does not accept well-typed arguments; "" if it does."""
    for name, value in arguments.items():
        parameter = tool.parameters[name]
        if parameter.shape == "id" and not (value.startswith(f"{parameter.prefix}-") and world.exists(value)):
            return f"unknown {parameter.words} {value}"
        if parameter.kind in ("date", "time") and not _valid_moment(parameter.kind, value):
            return f"invalid {parameter.kind} {value}"
        if isinstance(value, str) and value in world.unavailable:
            return f"{value} is not available"
    return ""


def _valid_moment(kind: str, value: str) -> bool:
    pattern = r"\d{4}-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])" if kind == "date" else r"([01]\d|2[0-3]):[0-5]\d"
    return re.fullmatch(pattern, value) is not None


def _random(world: World, leaf: Leaf, arguments: dict[str, Any]) -> Random:
    """Draws fixed by the world and the question, so that the same lookup answers the same."""
    return Random(f"{world.seed}/{leaf.key}/{json.dumps(arguments, sort_keys=True)}")


def _lookup(world: World, leaf: Leaf, arguments: dict[str, Any]) -> dict[str, Any]:
    rng = _random(world, leaf, arguments)
    if leaf.returns:
        return {name: KINDS[kind].draw(rng) for name, kind in leaf.returns}
    return {"status": rng.choice(("active", "confirmed", "open", "ready"))}


def _search(world: World, leaf: Leaf, arguments: dict[str, Any]) -> dict[str, Any]:
    rng = _random(world, leaf, arguments)
    return {"results": rng.sample(sorted(set(world.records(leaf.prefix))), rng.choice((2, 3)))}


def _create(world: World, leaf: Leaf, arguments: dict[str, Any]) -> dict[str, Any]:
    record_id = world.unknown_id(Random(f"{world.seed}/new/{leaf.prefix}/{world._calls}"), leaf.prefix)
    world.records(leaf.prefix).append(record_id)
    return {f"{leaf.object}_id": record_id, "status": "created"}


def _update(world: World, leaf: Leaf, arguments: dict[str, Any]) -> dict[str, Any]:
    return {"status": "updated"}


def _delete(world: World, leaf: Leaf, arguments: dict[str, Any]) -> dict[str, Any]:
    record_id = next(value for key, value in arguments.items() if key.endswith("_id"))
    world.deleted.add(record_id)
    return {"id": record_id, "status": "deleted"}


def _act(world: World, leaf: Leaf, arguments: dict[str, Any]) -> dict[str, Any]:
    return {"status": "done"}


def _compute(world: World, leaf: Leaf, arguments: dict[str, Any]) -> dict[str, Any]:
    try:
        result = round(FORMULAS[leaf.formula](arguments, _random(world, leaf, arguments)), 2)
        if not math.isfinite(result):
            raise OverflowError("the result is too large")
    except (ArithmeticError, ValueError) as error:
        return {"error": f"cannot be computed: {error}"}
    return {"result": result}


_EFFECTS: dict[str, Callable[[World, Leaf, dict[str, Any]], dict[str, Any]]] = {
    "lookup": _lookup, "search": _search, "create": _create, "update": _update, "delete": _delete, "act": _act,
    "compute": _compute,
}  # fmt: skip

_METRES = {"metres": 1.0, "feet": 0.3048, "miles": 1609.344, "inches": 0.0254, "yards": 0.9144, "kilometres": 1000.0}
_GRAMS = {"grams": 1.0, "pounds": 453.59237, "kilograms": 1000.0, "ounces": 28.349523, "stones": 6350.29318,
          "tonnes": 1e6}  # fmt: skip


def _loan(a: dict[str, Any], rng: Random) -> float:
    rate = a["rate"] / 1200
    return a["principal"] / a["months"] if rate == 0 else a["principal"] * rate / (1 - (1 + rate) ** -a["months"])


def _temperature(a: dict[str, Any], rng: Random) -> float:
    kelvin = a["degrees"] + 273.15
    return {"fahrenheit": a["degrees"] * 1.8 + 32, "kelvin": kelvin, "rankine": kelvin * 1.8}[a["to_unit"]]


def _mean(a: dict[str, Any], rng: Random) -> float:
    values = a["numbers"] if "numbers" in a else a["grades"]
    return sum(values) / len(values)


def _dice(a: dict[str, Any], rng: Random) -> float:
    count = a.get("dice", 1)
    if count > 1000:
        raise ValueError("more than 1000 dice")
    return sum(rng.randint(1, a.get("sides", 6)) for _ in range(count))


FORMULAS: dict[str, Callable[[dict[str, Any], Random], float]] = {
    "convert": lambda a, rng: a["sum"] * rng.uniform(0.2, 5),
    "loan": _loan,
    "percent": lambda a, rng: a["whole"] * a["part"] / 100,
    "tax": lambda a, rng: a["income"] * a["rate"] / 100,
    "discount": lambda a, rng: a["list_price"] * (1 - a["percent_off"] / 100),
    "bmi": lambda a, rng: a["body_weight"] / (a["height"] / 100) ** 2,
    "multiply": lambda a, rng: a["distance"] * a["fuel_price"],
    "shipping": lambda a, rng: 5 + a["parcel_weight"] * rng.uniform(1, 4),
    "length": lambda a, rng: a["value"] * _METRES[a["source_unit"]] / _METRES[a["target_unit"]],
    "weight": lambda a, rng: a["value"] * _GRAMS[a["from_unit"]] / _GRAMS[a["into_unit"]],
    "temperature": _temperature,
    "mean": _mean,
    "dice": _dice,
}


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
