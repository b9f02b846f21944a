"""Samples: deterministic, exact, well formed, balanced."""

import itertools
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from looptool_jax.toolcall.chat import get_format
from looptool_jax.toolcall.matcher import match
from looptool_jax.toolcall.records import Sample
from looptool_jax.toolcall.schema import check_call
from looptool_jax.world import CATEGORIES, World, WorldError, execute, generate, recognise, validate
from looptool_jax.world.tools import squash


@pytest.fixture(scope="module")
def train():
    return generate("train", 900, 0)


@pytest.fixture(scope="module")
def heldout():
    return generate("heldout", 1200, 0)


def test_same_seed_same_samples_whatever_the_count(train):
    assert generate("train", 40, 0) == train[:40]
    assert generate("train", 40, 1) != train[:40]


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**31), count=st.integers(1, 12), split=st.sampled_from(["train", "heldout"]))
def test_any_seed_makes_valid_samples(seed, count, split):
    samples = generate(split, count, seed)
    assert [sample.id for sample in samples] == [f"world-{split}-{seed}-{i:06d}" for i in range(count)]
    assert [Sample.from_json(sample.to_json()) for sample in samples] == samples
    assert [validate(sample) for sample in samples] == [[]] * count


def test_heldout_has_other_tools(train, heldout):
    assert len(heldout) == 1200
    names = [{squash(tool.name) for sample in samples for tool in sample.tools} for samples in (train, heldout)]
    assert not names[0] & names[1]


def test_categories_are_balanced(train):
    counts = Counter(sample.category for sample in train)
    for category, weight in CATEGORIES.items():
        assert abs(counts[category] / len(train) - weight) < 0.05
    assert sum(CATEGORIES.values()) == pytest.approx(1)
    assert {sample.category for sample in generate("train", 20, 0, ["parallel"])} == {"parallel"}
    assert {sample.category for sample in generate("train", 20, 0, {"single": 1, "parallel": 0})} == {"single"}
    with pytest.raises(WorldError, match="dancing"):
        generate("train", 1, 0, ["dancing"])
    with pytest.raises(WorldError, match="validation"):
        generate("validation", 1, 0)


def test_labels_execute_and_match_themselves(train, heldout):
    for sample in train + heldout:
        assert match(get_format("qwen3").render_target(sample.target), sample.target, sample.tools).ok
        world = World.of_dialogue(sample.messages, sample.tools)
        for call in sample.target.calls:
            assert check_call(call, sample.tools) == []
            assert "error" not in execute(world, call)
            order = list(recognise(next(tool for tool in sample.tools if tool.name == call.name)).parameters)
            assert list(call.arguments) == [name for name in order if name in call.arguments]


def test_the_validator_accepts_every_label(train, heldout):
    assert [(sample.id, problems) for sample in train + heldout if (problems := validate(sample))] == []


def test_roles_alternate(train):
    followers = {"user": {"assistant"}, "assistant": {"tool", "user"}, "tool": {"assistant"}}
    for sample in train:
        roles = [message.role for message in sample.messages]
        assert roles[0] == "user" and roles[-1] in ("user", "tool")
        assert all(b in followers[a] for a, b in itertools.pairwise(roles))
        for message, role in zip(sample.messages, roles[1:], strict=False):
            assert not message.calls or (message.role == "assistant" and role == "tool")
        assert len(sample.messages) == 1 or sample.category == "multi_turn"


def test_shape_of_each_category(train):
    for sample in train:
        calls = sample.target.calls
        names = [call.name for call in calls]
        shown = [tool.name for tool in sample.tools]
        assert len(set(shown)) == len(shown) and set(names) <= set(shown)
        match sample.category:
            case "single":
                assert len(calls) == len(shown) == 1
            case "multiple":
                assert len(calls) == 1 < len(shown) <= 4
            case "parallel":
                assert 2 <= len(calls) <= 3 and len(set(names)) == 1
                assert len({str(call) for call in calls}) == len(calls)
            case "parallel_multiple":
                assert 2 <= len(calls) <= 3 and len(set(names)) == len(calls)
            case "missing_parameter":
                assert sample.target.intent == "clarify" and sample.target.missing
                assert any(set(sample.target.missing) <= set(tool.required) for tool in sample.tools)
            case "irrelevant":
                assert sample.target.intent == "refuse"
            case "multi_turn":
                assert len(calls) == 1 and len(sample.messages) >= 3


def test_prompts_are_short(train):
    words = sorted(len(get_format("qwen3").render(s.messages, s.tools, thinking=False).split()) for s in train)
    assert words[len(words) // 2] < 160 and words[-1] < 320
