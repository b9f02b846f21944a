"""New samples around old ones, and the check of samples that somebody else wrote."""

import random
from dataclasses import replace

import pytest

from looptool_jax.toolcall.records import Call, Message, Target, Tool
from looptool_jax.world import WorldError, corrupt, generate, validate, variation

SCENARIOS = ("complexity", "persona", "interaction", "data")


@pytest.fixture(scope="module")
def samples():
    return generate("train", 250, 7) + generate("heldout", 100, 7)


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_variations_are_new_and_valid(samples, scenario):
    rng = random.Random(scenario)
    for sample in samples:
        new = variation(sample, scenario, rng)
        assert new.tools == sample.tools and new.id != sample.id
        assert new.messages != sample.messages
        assert (new.origin.kind, new.origin.parent, new.origin.scenario) == ("expanded", sample.id, scenario)
        assert validate(new) == []
        if scenario == "data" and sample.category in ("single", "multiple", "parallel", "irrelevant"):
            assert new.category == sample.category


def test_variation_changes_complexity_and_interaction(samples):
    rng = random.Random(1)
    singles = [sample for sample in samples if sample.category == "single"]
    assert all(len(variation(s, "complexity", rng).target.calls) > 1 for s in singles if s.tools[0].required)
    turns = [len(variation(sample, "interaction", rng).messages) for sample in singles]
    assert sum(turn > 1 for turn in turns) > len(turns) / 2


def test_variation_is_deterministic_and_refuses_what_it_does_not_know(samples):
    one, two = (variation(samples[0], "data", random.Random(3)) for _ in range(2))
    assert one == two
    with pytest.raises(WorldError, match="weather"):
        variation(samples[0], "weather", random.Random(0))
    with pytest.raises(WorldError, match="strange"):
        variation(replace(samples[0], tools=(Tool("strange"),)), "data", random.Random(0))


def test_validate_finds_nearly_every_corruption(samples):
    rng = random.Random(0)
    wrong = [corrupt(sample.target, sample.tools, sample.messages, rng)[0] for sample in samples]
    missed = [s.id for s, target in zip(samples, wrong, strict=True) if not validate(replace(s, target=target))]
    assert len(missed) <= 0.03 * len(samples)


def test_validate_names_the_problem(samples):
    single = next(s for s in samples if s.category == "single" and "city" in s.tools[0].required)
    call = single.target.calls[0]
    other = Target((Call(call.name, call.arguments | {"city": "Nowhere Land"}),))
    assert any("city" in problem or "Nowhere" in problem for problem in validate(replace(single, target=other)))
    silent = replace(single, messages=(Message("user", "Good morning."),))
    assert any("does not ask" in problem for problem in validate(silent))
    assert validate(replace(single, tools=(Tool("strange"),))) == ["strange is not a tool of the procedural world"]
    refusal = replace(single, target=Target(text="I cannot do that.", intent="refuse"))
    assert validate(refusal) == [f"{call.name} can do this"]
