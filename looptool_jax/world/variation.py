"""New samples around an old one, for the four scenario variations of error-driven expansion (paper, section 4.4)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random

from looptool_jax.toolcall.records import Origin, Sample
from looptool_jax.world import dialogues
from looptool_jax.world.dialogues import Scene
from looptool_jax.world.errors import WorldError
from looptool_jax.world.execute import World
from looptool_jax.world.tools import VARIANTS, WorldTool, recognise, world_tool
from looptool_jax.world.trees import SPLITS, split_leaves
from looptool_jax.world.wording import speak_as

Plan = tuple[str, Callable[[], Scene]]


def variation(sample: Sample, scenario: str, rng: Random) -> Sample:
    """A new sample over the same tool list with new values and an exact label.

    scenario: complexity (more things at once, or dependent ones), persona (someone else asks), interaction (values
    over several turns) or data (the same kind of request, every value anew). Raises WorldError for another
    scenario, or where a tool is not of this world.
    """
    if scenario not in _PLANS:
        raise WorldError(f"scenario: expected one of {', '.join(_PLANS)}, found {scenario!r}")
    tools = [recognise(tool) for tool in sample.tools]
    sample_id = f"{sample.id}-{scenario}-{rng.getrandbits(32):08x}"
    category, build = rng.choice(_PLANS[scenario](_Stage(rng, World(sample_id, tools), sample, tools)))
    scene = build()
    if scenario == "persona":
        first, *others = scene.messages
        scene = Scene((speak_as(rng, first), *others), scene.target)
    origin = Origin("expanded", sample.origin.round, parent=sample.id, scenario=scenario)
    return Sample(sample_id, sample.tools, scene.messages, scene.target, origin, category)


class _Stage:
    """A sample's tools as a cast: which are called in it, and which builders they allow."""

    def __init__(self, rng: Random, world: World, sample: Sample, tools: Sequence[WorldTool]):
        self.rng, self.world, self.sample, self.tools = rng, world, sample, list(tools)
        called = {call.name for call in sample.target.calls}
        self.called = [tool for tool in self.tools if tool.tool.name in called]

    @property
    def main(self) -> WorldTool:
        """The tool of the new sample: the first that the old one calls, or any."""
        return self.called[0] if self.called else self.rng.choice(self.tools)

    def plan(self, category: str, builder: Callable[..., Scene], *cast: object) -> Plan:
        return category, lambda: builder(self.rng, self.world, *cast)

    def one(self) -> list[Plan]:
        return [self.plan("single" if len(self.tools) == 1 else "multiple", dialogues.one_call, self.main)]

    def several(self) -> list[Plan]:
        plans = [self.plan("parallel", dialogues.same_tool, tool) for tool in [self.main] if dialogues.repeatable(tool)]
        if len(self.tools) > 1:
            cast = self.rng.sample(self.tools, 2)
            plans.append(self.plan("parallel_multiple", dialogues.several_tools, cast))
        return plans

    def dependent(self) -> list[Plan]:
        pairs = [(a, b) for a in self.tools for b in self.tools if dialogues.linked(a, b)]
        if not pairs:
            return []
        pair = self.rng.choice(pairs)
        return [self.plan("multi_turn", builder, *pair) for builder in (dialogues.follow_up, dialogues.chained)]

    def turns(self) -> list[Plan]:
        tool, plans = self.main, []
        if dialogues.repeatable(tool):
            builders = (dialogues.supplied, dialogues.repeated)
            plans = [self.plan("multi_turn", builder, tool) for builder in builders]
            plans.append(self.plan("missing_parameter", dialogues.missing_values, tool))
        if dialogues.correctable(tool):
            plans.append(self.plan("multi_turn", dialogues.corrected, tool))
        return plans

    def alike(self) -> list[Plan]:
        """The old sample's own kind of dialogue."""
        target = self.sample.target
        if target.intent == "refuse":
            return [self.plan("irrelevant", dialogues.no_tool, self.absent())]
        if target.intent == "clarify":
            asked = [tool for tool in self.tools if set(target.missing) <= set(tool.required)]
            able = [tool for tool in asked or self.tools if dialogues.repeatable(tool)]
            if able:
                return [self.plan("missing_parameter", dialogues.missing_values, self.rng.choice(able))]
            return self.one()
        if len(self.called) > 1:
            return [self.plan("parallel_multiple", dialogues.several_tools, self.called)]
        if len(target.calls) > 1 and dialogues.repeatable(self.main):
            return [self.plan("parallel", dialogues.same_tool, self.main)]
        if len(self.sample.messages) > 1:
            return self.dependent() or self.turns() or self.one()
        return self.one()

    def absent(self) -> WorldTool:
        """A tool that none of the shown ones replaces: of another domain, without an object in common."""
        leaves = [tool.leaf for tool in self.tools]
        split = next(split for split in SPLITS if leaves[0] in split_leaves(split))
        far = [
            leaf
            for leaf in split_leaves(split)
            if all(leaf.domain != shown.domain and not leaf.objects & shown.objects for shown in leaves)
        ]
        return world_tool(self.rng.choice(far).key, self.rng.randrange(VARIANTS))


_PLANS: dict[str, Callable[[_Stage], list[Plan]]] = {
    "complexity": lambda stage: stage.several() + stage.dependent() or stage.one(),
    "persona": lambda stage: stage.alike(),
    "interaction": lambda stage: stage.turns() + stage.dependent() or stage.one(),
    "data": lambda stage: stage.alike(),
}
