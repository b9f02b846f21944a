"""The state: what calls change, and how they fail."""

import json
import random

import pytest

from looptool_jax.toolcall.records import Call, Message
from looptool_jax.world import World, execute
from looptool_jax.world.dialogues import draw_arguments
from looptool_jax.world.execute import FORMULAS
from looptool_jax.world.tools import VARIANTS, world_tool
from looptool_jax.world.trees import leaves


def plain(leaf):
    """A variant of a leaf with only its needs, and its properties by parameter key."""
    variants = (world_tool(leaf, number) for number in range(VARIANTS))
    tool = next(tool for tool in variants if len(tool.parameters) == len(tool.leaf.needs))
    return tool, {parameter.key: name for name, parameter in tool.parameters.items()}


def call(tool_and_names, **values):
    tool, names = tool_and_names
    return Call(tool.tool.name, {names[key]: value for key, value in values.items()})


def test_create_update_delete_follow_each_other():
    book, change, cancel = plain("book_hotel"), plain("change_hotel"), plain("cancel_hotel")
    world = World("s", [book[0], change[0], cancel[0]])
    made = execute(world, call(book, city="Oslo", check_in_date="2026-01-02"))
    assert made["status"] == "created" and world.exists(made["booking_id"])
    new = made["booking_id"]
    assert execute(world, call(change, booking_id=new, new_date="2026-02-03")) == {"status": "updated"}
    assert execute(world, call(cancel, booking_id=new)) == {"id": new, "status": "deleted"}
    assert execute(world, call(cancel, booking_id=new)) == {"error": f"unknown booking id {new}"}


def test_search_finds_records_that_exist():
    find, details = plain("find_hotel"), plain("hotel_details")
    world = World("s", [find[0], details[0]])
    for hotel in execute(world, call(find, city="Rome"))["results"]:
        assert "error" not in execute(world, call(details, hotel_id=hotel))
    assert "error" in execute(world, call(details, hotel_id=world.unknown_id(random.Random(0), "HT")))
    assert "error" in execute(world, call(details, hotel_id=world.records("HB")[0]))


@pytest.mark.parametrize(
    ("values", "error"),
    [
        ({"city": "Rome"}, "missing required argument"),
        ({"city": "Rome", "check_in_date": "tomorrow"}, "invalid date"),
        ({"city": 7, "check_in_date": "2026-01-02"}, "must be string"),
    ],
)
def test_bad_arguments_are_reported(values, error):
    book = plain("book_hotel")
    assert error in execute(World("s", [book[0]]), call(book, **values))["error"]


def test_unknown_tool_and_unavailable_value():
    book = plain("book_hotel")
    world = World("s", [book[0]])
    assert execute(world, Call("nothing")) == {"error": "unknown tool nothing"}
    world.unavailable.add("2026-01-02")
    assert execute(world, call(book, city="Rome", check_in_date="2026-01-02")) == {
        "error": "2026-01-02 is not available"
    }


def test_lookups_depend_on_seed_and_question_only():
    balance = plain("account_balance")
    first, other = call(balance, account="AB12-0001"), call(balance, account="AB12-0002")
    world = World("s", [balance[0]])
    answer = execute(world, first)
    execute(world, other)
    assert execute(world, first) == answer == execute(World("s", [balance[0]]), first)
    assert execute(World("t", [balance[0]]), first) != answer


def test_formulas():
    length, weight, degrees = plain("convert_length"), plain("convert_weight"), plain("convert_temperature")
    world = World("s", [length[0], weight[0], degrees[0]])
    assert execute(world, call(length, value=2, source_unit="miles", target_unit="kilometres")) == {"result": 3.22}
    assert execute(world, call(weight, value=1, from_unit="kilograms", into_unit="ounces")) == {"result": 35.27}
    assert execute(world, call(degrees, degrees=20, to_unit="fahrenheit")) == {"result": 68.0}
    assert FORMULAS["percent"]({"part": 20, "whole": 300}, random.Random()) == 60


@pytest.mark.parametrize(
    ("leaf", "values"),
    [
        ("loan_payment", {"principal": 100, "rate": 0, "months": 0}),
        ("loan_payment", {"principal": 10**400, "rate": 1, "months": 12}),
        ("loan_payment", {"principal": 100, "rate": -5, "months": 10**7}),
        ("calculate_bmi", {"body_weight": 70, "height": 0}),
        ("number_mean", {"numbers": []}),
        ("number_mean", {"numbers": [1e308, 1e308]}),
        ("roll_dice", {"dice": 10**12}),
        ("roll_dice", {"dice": 2, "sides": 0}),
        ("roll_dice", {"dice": 2, "sides": 10**400}),
    ],
)
def test_what_cannot_be_computed_is_an_error_and_no_crash(leaf, values):
    """Calls that models wrote are executed, too: well-typed, but no draw of the world's own."""
    tools = (world_tool(leaf, number) for number in range(VARIANTS))
    tool = next(tool for tool in tools if set(values) <= {p.key for p in tool.parameters.values()})
    names = {parameter.key: name for name, parameter in tool.parameters.items()}
    assert "cannot be computed" in execute(World("s", [tool]), call((tool, names), **values))["error"]


def test_every_leaf_executes():
    rng = random.Random(0)
    for leaf in leaves():
        tool = world_tool(leaf, 0)
        world = World(leaf, [tool])
        result = execute(world, Call(tool.tool.name, draw_arguments(rng, world, tool)))
        assert "error" not in result
        json.dumps(result)


def test_world_of_a_dialogue():
    cancel = plain("cancel_hotel")
    good, bad, gone = "HB-1111", "HB-2222", "HB-3333"
    messages = [
        Message("user", f"Cancel {good}, {bad} and {gone}."),
        Message("tool", json.dumps({"error": f"unknown booking id {bad}"})),
        Message("tool", json.dumps({"id": gone, "status": "deleted"})),
        Message("tool", json.dumps({"results": ["HB-4444"]})),
    ]
    world = World.of_dialogue(messages, [cancel[0].tool])
    assert [world.exists(name) for name in (good, bad, gone, "HB-4444", "HB-5555")] == [True, False, False, True, False]
