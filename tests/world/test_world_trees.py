"""The trees: complete, consistent, and split without overlap."""

import pytest

from looptool_jax.toolcall.records import Tool
from looptool_jax.toolcall.schema import normalise_tool
from looptool_jax.world import WorldError, recognise
from looptool_jax.world.tools import split_tools, squash
from looptool_jax.world.trees import EFFECTS, SPLITS, leaves, parameters, split_leaves
from looptool_jax.world.values import KINDS


def test_trees_are_large_and_every_domain_is_in_both_splits():
    assert len(leaves()) > 200
    domains = {leaf.domain for leaf in leaves().values()}
    assert len(domains) >= 12
    for split in SPLITS:
        assert {leaf.domain for leaf in split_leaves(split)} == domains
        assert {leaf.effect for leaf in split_leaves(split)} == set(EFFECTS)
    assert 0.18 < len(split_leaves("heldout")) / len(leaves()) < 0.32


def test_splits_share_no_leaf_and_no_tool_name():
    train, heldout = (split_leaves(split) for split in ("train", "heldout"))
    assert not {leaf.key for leaf in train} & {leaf.key for leaf in heldout}
    names = [{squash(tool.tool.name) for tool in split_tools(split)} for split in ("train", "heldout")]
    assert not names[0] & names[1]
    assert len({tool.tool.name for tool in split_tools("train")}) > 1000
    assert len({tool.tool.name for tool in split_tools("heldout")}) > 300


def test_every_parameter_is_used_and_every_returned_kind_exists():
    used = {parameter.key for leaf in leaves().values() for parameter in leaf.parameters}
    assert set(parameters()) <= used
    assert {kind for leaf in leaves().values() for _, kind in leaf.returns} <= set(KINDS)


def test_id_prefixes_are_unique():
    owners: dict[str, set] = {}
    for leaf in leaves().values():
        for parameter in leaf.parameters:
            if parameter.shape == "id":
                owners.setdefault(parameter.prefix, set()).add((leaf.domain, leaf.topic, parameter.kind))
        if leaf.prefix:
            owners.setdefault(leaf.prefix, set()).add((leaf.domain, leaf.topic, leaf.object))
    assert all(len(who) == 1 for who in owners.values())


@pytest.mark.parametrize("split", SPLITS)
def test_tools_are_normalised_compact_and_recognised(split):
    conventions = set()
    for tool in split_tools(split):
        assert normalise_tool(tool.tool.to_json()) == tool.tool
        assert len(tool.tool.description.split()) <= 8
        assert len(tool.parameters) <= 5
        found = recognise(tool.tool)
        assert found.leaf is tool.leaf and found.parameters == tool.parameters
        conventions.add(("_" in tool.tool.name and "snake") or ("-" in tool.tool.name and "kebab") or "other")
        needed = [name for name, parameter in tool.parameters.items() if parameter in tool.leaf.needs]
        assert len(needed) == len(tool.leaf.needs) and set(needed) <= set(tool.required)
    assert conventions == {"snake", "kebab", "other"}
    sizes = {min(len(tool.parameters), 4) for tool in split_tools(split)}
    assert {0, 1, 2, 3, 4} <= sizes | ({0} if split == "heldout" else set())


def test_a_strange_tool_is_refused():
    with pytest.raises(WorldError, match="launch_rocket"):
        recognise(Tool("launch_rocket"))
    known = split_tools("train")[0].tool
    extra = {"type": "object", "properties": {"warp_factor": {"type": "integer"}}}
    with pytest.raises(WorldError, match="warp_factor"):
        recognise(Tool(known.name, "", extra))
