"""Samples of the procedural world: tools are cast for a category, a dialogue is built, the label is exact.

Sample number i of a split and seed is always the same, whatever the count.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from random import Random

from looptool_jax.toolcall.records import Sample
from looptool_jax.world import dialogues
from looptool_jax.world.dialogues import Scene
from looptool_jax.world.errors import WorldError
from looptool_jax.world.execute import World
from looptool_jax.world.tools import VARIANTS, WorldTool, world_tool
from looptool_jax.world.trees import Leaf, Split, split_leaves

CATEGORIES: dict[str, float] = {
    "single": 0.18,
    "multiple": 0.2,
    "parallel": 0.11,
    "parallel_multiple": 0.11,
    "missing_parameter": 0.12,
    "irrelevant": 0.1,
    "multi_turn": 0.18,
}
"""Categories and their default weights."""

MAX_SHOWN_PARAMETERS = 11
"""Distractors are left out where a tool list would show more parameters than this."""

Cast = tuple[list[WorldTool], Scene]


def generate(
    split: Split, count: int, seed: int, categories: Mapping[str, float] | Sequence[str] | None = None
) -> list[Sample]:
    """`count` samples of a split; sample i depends on (split, seed, i, categories) only.

    categories: weights by category, or a sequence of categories with equal weights; None for the defaults.
    Raises WorldError for an unknown split or category.
    """
    weights = _weights(categories)
    split_leaves(split)
    return [_sample(split, seed, index, weights) for index in range(count)]


def _weights(categories: Mapping[str, float] | Sequence[str] | None) -> dict[str, float]:
    if categories is None:
        return CATEGORIES
    weights = dict(categories) if isinstance(categories, Mapping) else dict.fromkeys(categories, 1.0)
    unknown = [name for name in weights if name not in CATEGORIES]
    if unknown or not weights:
        raise WorldError(f"categories: expected some of {', '.join(CATEGORIES)}, found {', '.join(unknown) or 'none'}")
    return weights


def _sample(split: Split, seed: int, index: int, weights: dict[str, float]) -> Sample:
    key = f"world-{split}-{seed}-{index:06d}"
    rng = Random(key)
    category = rng.choices(list(weights), list(weights.values()))[0]
    shown, scene = _CASTS[category](rng, split, key)
    rng.shuffle(shown)
    tools = tuple(tool.tool for tool in shown)
    return Sample(key, tools, scene.messages, scene.target, category=category)


def _single(rng: Random, split: Split, key: str) -> Cast:
    tool = _tool(rng, split)
    return [tool], dialogues.one_call(rng, World(key, [tool]), tool)


def _multiple(rng: Random, split: Split, key: str) -> Cast:
    tool = _tool(rng, split)
    shown = _with_distractors(rng, split, [tool], rng.choice((1, 2, 2, 3)))
    return shown, dialogues.one_call(rng, World(key, shown), tool)


def _parallel(rng: Random, split: Split, key: str) -> Cast:
    tool = _tool(rng, split, dialogues.repeatable)
    shown = _with_distractors(rng, split, [tool], rng.choice((0, 0, 1, 2)))
    return shown, dialogues.same_tool(rng, World(key, shown), tool)


def _parallel_multiple(rng: Random, split: Split, key: str) -> Cast:
    right = [_tool(rng, split)]
    while len(right) < 2 or (len(right) == 2 and rng.random() < 0.25):
        right.append(_distractor(rng, split, right))
    shown = _with_distractors(rng, split, right, rng.choice((0, 0, 1)))
    return shown, dialogues.several_tools(rng, World(key, shown), right)


def _missing_parameter(rng: Random, split: Split, key: str) -> Cast:
    tool = _tool(rng, split, dialogues.repeatable)
    shown = _with_distractors(rng, split, [tool], rng.choice((0, 1, 2)))
    return shown, dialogues.missing_values(rng, World(key, shown), tool)


def _irrelevant(rng: Random, split: Split, key: str) -> Cast:
    absent = _tool(rng, split)
    shown: list[WorldTool] = []
    for _ in range(rng.choice((1, 2, 2, 3))):
        shown.append(_unable(rng, split, absent, shown))
    return shown, dialogues.no_tool(rng, World(key, shown), absent)


def _multi_turn(rng: Random, split: Split, key: str) -> Cast:
    """Half of the dialogues need a second tool."""
    builder = rng.choices(list(_TURNS), list(_TURNS.values()))[0]
    if builder in (dialogues.follow_up, dialogues.chained):
        first, second = rng.choice(_links(split))
        right = [_variant(rng, first), _variant(rng, second)]
    elif builder is dialogues.new_topic:
        right = [_tool(rng, split)]
        right.append(_distractor(rng, split, right))
    else:
        accepts = dialogues.correctable if builder is dialogues.corrected else dialogues.repeatable
        right = [_tool(rng, split, accepts)]
    shown = _with_distractors(rng, split, right, rng.choice((0, 0, 1)))
    return shown, builder(rng, World(key, shown), *right)


_TURNS: dict[Callable[..., Scene], float] = {
    dialogues.follow_up: 0.22,
    dialogues.chained: 0.16,
    dialogues.corrected: 0.18,
    dialogues.supplied: 0.22,
    dialogues.repeated: 0.12,
    dialogues.new_topic: 0.1,
}

_CASTS: dict[str, Callable[[Random, Split, str], Cast]] = {
    "single": _single,
    "multiple": _multiple,
    "parallel": _parallel,
    "parallel_multiple": _parallel_multiple,
    "missing_parameter": _missing_parameter,
    "irrelevant": _irrelevant,
    "multi_turn": _multi_turn,
}


def _variant(rng: Random, leaf: Leaf) -> WorldTool:
    return world_tool(leaf.key, rng.randrange(VARIANTS))


def _tool(rng: Random, split: Split, accepts: Callable[[WorldTool], object] = bool) -> WorldTool:
    while not accepts(tool := _variant(rng, rng.choice(split_leaves(split)))):
        pass
    return tool


def _distractor(rng: Random, split: Split, shown: Sequence[WorldTool]) -> WorldTool:
    """A tool of another leaf than those shown: of the same topic half of the time."""
    taken = {tool.leaf.key for tool in shown}
    near = [leaf for leaf in _topic(split, shown[0].leaf) if leaf.key not in taken]
    if near and rng.random() < 0.5:
        return _variant(rng, rng.choice(near))
    return _tool(rng, split, lambda tool: tool.leaf.key not in taken)


def _with_distractors(rng: Random, split: Split, right: list[WorldTool], count: int) -> list[WorldTool]:
    shown = list(right)
    for _ in range(count):
        tool = _distractor(rng, split, shown)
        if sum(len(other.parameters) for other in (*shown, tool)) <= MAX_SHOWN_PARAMETERS:
            shown.append(tool)
    return shown


def _unable(rng: Random, split: Split, absent: WorldTool, shown: Sequence[WorldTool]) -> WorldTool:
    """A tool that cannot do what `absent` does: another function of its topic, or one without a word in common."""
    taken = {absent.leaf.key, *(tool.leaf.key for tool in shown)}
    near = [leaf for leaf in _topic(split, absent.leaf) if leaf.key not in taken]
    if near and rng.random() < 0.4:
        return _variant(rng, rng.choice(near))
    far = [leaf for leaf in _unrelated(split, absent.leaf) if leaf.key not in taken]
    return _variant(rng, rng.choice(far))


@cache
def _topic(split: Split, leaf: Leaf) -> tuple[Leaf, ...]:
    return tuple(other for other in split_leaves(split) if (other.domain, other.topic) == (leaf.domain, leaf.topic))


@cache
def _unrelated(split: Split, leaf: Leaf) -> tuple[Leaf, ...]:
    """Leaves of other domains that share no object with this one."""
    leaves = split_leaves(split)
    return tuple(other for other in leaves if other.domain != leaf.domain and not other.objects & leaf.objects)


@cache
def _links(split: Split) -> tuple[tuple[Leaf, Leaf], ...]:
    """Pairs of leaves in which the second works on the records of the first."""
    return tuple(
        (first, second)
        for first in split_leaves(split)
        for second in _topic(split, first)
        if dialogues.linked(world_tool(first.key, 0), world_tool(second.key, 0))
    )
