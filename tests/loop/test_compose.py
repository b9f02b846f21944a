"""Composition of D_{j+1}: sizes, the paper's table, fillers, ablations."""

from dataclasses import replace

import pytest

from looptool_jax.loop.compose import (
    PAPER_SHARES,
    ComposeConfig,
    Mastered,
    compose,
    compose_static,
    part_sizes,
    seeds_to_expand,
)
from looptool_jax.toolcall import Call, Message, Origin, Sample, Target, Tool

TOOL = Tool("ping")
SEED = Origin()
DEFAULTS = ComposeConfig()


def sample(name: str, origin: Origin = SEED) -> Sample:
    return Sample(name, (TOOL,), (Message("user", name),), Target(calls=(Call("ping"),)), origin)


def many(prefix: str, count: int, **origin) -> list[Sample]:
    return [sample(f"{prefix}{i:05d}", Origin(**origin)) for i in range(count)]


def mastered(count: int) -> list[Mastered]:
    return [Mastered(sample(f"m{i:05d}"), 1.0 + i / 1000) for i in range(count)]


def by_kind(samples: list[Sample]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for item in samples:
        counts[item.origin.kind] = counts.get(item.origin.kind, 0) + 1
    return counts


def composed(cfg=DEFAULTS, *, errors=200, expanded=800, mastered_=600, untrained=500, size=1000):
    return compose(
        many("e", errors, kind="error", round=2, verdict="prediction_wrong"),
        {},
        many("x", expanded, kind="expanded", round=2),
        mastered(mastered_),
        many("s", untrained),
        size,
        seed=3,
        round_=1,
        cfg=cfg,
    )


def test_the_papers_table_comes_out_at_the_papers_size():
    sizes = part_sizes(18304, 1, ComposeConfig(), 1919)
    table3 = {"error": 1919, "expanded": 6566, "high_ppl": 4187, "seed_new": 5632}
    assert sum(sizes.values()) == 18304
    assert all(abs(sizes[part] - count) <= 2 for part, count in table3.items())
    assert part_sizes(18304, 9, DEFAULTS, 9)["seed_new"] == part_sizes(18304, 3, DEFAULTS, 9)["seed_new"]


@pytest.mark.parametrize("errors", [0, 60, 105, 400, 2000])
def test_all_error_seeds_enter_and_the_others_keep_their_ratio(errors):
    cfg = ComposeConfig(errors="all")
    sizes = part_sizes(1000, 1, cfg, errors)
    assert sum(sizes.values()) == 1000 and sizes["error"] == min(errors, 1000)
    rest = 1000 - sizes["error"]
    for part, share in (("expanded", 0.3587), ("high_ppl", 0.2287), ("seed_new", 0.3077)):
        assert sizes[part] == pytest.approx(rest * share / (1 - 0.1048), abs=1.5)
    result = composed(cfg, errors=errors, expanded=800, mastered_=900, untrained=900)
    assert by_kind(result.samples).get("error", 0) == min(errors, 1000) and len(result.samples) == 1000


def test_with_the_papers_share_of_errors_both_ways_give_the_papers_table():
    whole, share = (part_sizes(18304, 1, ComposeConfig(errors=errors), 1919) for errors in ("all", "share"))
    assert all(abs(whole[part] - share[part]) <= 2 for part in share)


def test_full_parts_have_the_wanted_sizes_and_lineage():
    result = composed()
    sizes = part_sizes(1000, 1, ComposeConfig(), 200)
    assert by_kind(result.samples) == sizes
    assert len({item.id for item in result.samples}) == 1000
    moved = next(item for item in result.samples if item.origin.kind == "high_ppl")
    assert moved.lineage == (Origin(),) and moved.origin.round == 2 and moved.origin.perplexity is not None


def test_the_highest_perplexity_is_taken_first():
    result = composed()
    taken = [item.origin.perplexity for item in result.samples if item.origin.kind == "high_ppl"]
    assert min(taken) > max(1.0 + i / 1000 for i in range(600 - len(taken)))


def test_the_hardest_by_rollouts_are_taken_first():
    rates = {f"m{i:05d}": i % 4 / 4 for i in range(600)}
    result = compose([], rates, [], mastered(600), [], 200, seed=3, round_=1, cfg=ComposeConfig(high_ppl="pass_rate"))
    taken = [item.id for item in result.samples]
    assert taken[:150] == [f"m{i:05d}" for i in range(596, -1, -4)]  # of equal rates the highest perplexity first
    assert taken[150:] == [f"m{i:05d}" for i in range(597, 397, -4)]


def test_error_seeds_that_a_rollout_solved_come_first_then_repaired_ones():
    wrong = many("e", 60, kind="error", round=2, verdict="prediction_wrong")
    repaired = many("r", 5, kind="error", round=2, verdict="label_wrong")
    rates = {item.id: float(i < 20) / 8 for i, item in enumerate(wrong)}
    rates["r00000"] = 1.0  # of the label that was replaced: it says nothing of the new one
    cfg = ComposeConfig(error_order="solved")
    order = [item.id for item in seeds_to_expand(wrong + repaired, rates, 600, 3, 1, cfg)]
    assert set(order[:20]) == {item.id for item in wrong[:20]} and order[:20] != sorted(order[:20])
    assert set(order[20:25]) == {item.id for item in repaired} and len(order) == 63
    taken = compose(wrong + repaired, rates, [], mastered(600), [], 240, seed=3, round_=1, cfg=cfg).samples
    assert {item.id for item in taken if item.origin.kind == "error"} == set(order[:25])
    random = [item.id for item in seeds_to_expand(wrong + repaired, rates, 600, 3, 1, ComposeConfig())]
    assert set(random[:20]) != set(order[:20])


def test_what_is_short_is_filled_by_high_ppl_then_seed_new_then_mastered():
    cfg = ComposeConfig(high_ppl="absolute", high_ppl_threshold=1.5)
    result = composed(cfg, errors=0, expanded=0, mastered_=800, untrained=400)
    counts = by_kind(result.samples)
    assert counts == {"high_ppl": 300, "seed_new": 400, "mastered": 300}
    assert {part.name: part.filled for part in result.parts}["mastered"] == 300


def test_a_set_that_cannot_be_filled_is_smaller_and_says_so():
    result = composed(errors=10, expanded=20, mastered_=30, untrained=5)
    assert len(result.samples) == 65
    assert sum(part.taken for part in result.parts) == 65


@pytest.mark.parametrize(
    ("policy", "kinds"),
    [
        ("drop", {"error": 105, "high_ppl": 228, "seed_new": 308}),
        ("high_ppl", {"error": 105, "high_ppl": 587, "seed_new": 308}),
        ("repeat_errors", {"error": 105, "repeated": 359, "high_ppl": 228, "seed_new": 308}),
    ],
)
def test_ablations_of_the_expanded_part(policy, kinds):
    result = composed(ComposeConfig(expanded_part=policy))
    assert by_kind(result.samples) == kinds
    assert len({item.id for item in result.samples}) == sum(kinds.values())


def test_with_all_errors_every_call_among_them_is_expanded():
    errors = many("e", 300, kind="error", round=2, verdict="prediction_wrong")
    assert len(seeds_to_expand(errors, {}, 1000, 3, 1, ComposeConfig(errors="all"))) == 300
    assert len(seeds_to_expand(errors, {}, 1000, 3, 1, ComposeConfig())) == 105


def test_ablations_of_the_expanded_part_never_fill_with_expanded_samples():
    for policy in ("drop", "high_ppl"):
        result = composed(ComposeConfig(expanded_part=policy), errors=10, expanded=800, mastered_=30, untrained=5)
        assert "expanded" not in by_kind(result.samples)


def test_repetition_repeats_the_error_seeds_of_the_set():
    result = composed(ComposeConfig(expanded_part="repeat_errors"))
    once = {item.id for item in result.samples if item.origin.kind == "error"}
    assert {item.origin.parent for item in result.samples if item.origin.kind == "repeated"} == once


def test_rounding_never_makes_a_part_negative():
    cfg = ComposeConfig(shares=[[0.5, 0.5, 0.0, 0.0]])
    assert part_sizes(323, 1, cfg, 400) == {"error": 161, "expanded": 162, "high_ppl": 0, "seed_new": 0}
    assert len(composed(cfg, size=323, errors=400).samples) == 323


def test_expansion_and_composition_choose_the_same_error_seeds():
    errors = many("e", 300, kind="error", round=2)
    chosen = seeds_to_expand(errors, {}, 1000, 3, 1, ComposeConfig())
    result = compose(errors, {}, [], mastered(900), [], 1000, 3, 1, ComposeConfig())
    assert {item.id for item in chosen} == {item.id for item in result.samples if item.origin.kind == "error"}
    assert chosen != seeds_to_expand(errors, {}, 1000, 4, 1, ComposeConfig())


def test_only_calls_are_expanded_and_texts_take_no_place_from_them():
    errors = many("e", 300, kind="error", round=2)
    texts = [replace(item, id=f"t{i}", target=Target(text="No.", intent="refuse")) for i, item in enumerate(errors)]
    chosen = seeds_to_expand(texts + errors, {}, 1000, 3, 1, ComposeConfig())
    assert len(chosen) == part_sizes(1000, 1, ComposeConfig(), 200)["error"] and all(s.target.is_call for s in chosen)


def test_order_of_arrival_of_mastered_samples_does_not_matter_for_top():
    pool = mastered(700)
    forward = compose([], {}, [], pool, [], 500, 1, 1, ComposeConfig())
    backward = compose([], {}, [], pool[::-1], [], 500, 1, 1, ComposeConfig())
    assert [item.id for item in forward.samples] == [item.id for item in backward.samples]


def test_static_uses_new_seeds_first():
    pool = many("s", 100)
    result = compose_static(pool, pool[60:], 60, seed=0, round_=1)
    kinds = by_kind(result.samples)
    assert kinds == {"seed_new": 40, "seed": 20}
    assert len({item.id for item in result.samples}) == 60


def test_the_papers_shares_add_up():
    assert all(abs(sum(row) - 1) < 0.001 for row in PAPER_SHARES)


@pytest.mark.parametrize(
    "wrong",
    [
        {"high_ppl": "best"},
        {"both_correct": "keep"},
        {"expanded_part": "x"},
        {"shares": [[0.5, 0.5, 0.5, 0.5]]},
        {"high_ppl_threshold": 0.5, "high_ppl": "absolute"},
        {"high_ppl_threshold": 1.5, "high_ppl": "quantile"},
    ],
)
def test_a_wrong_setting_names_the_key(wrong):
    with pytest.raises(ValueError, match=f"compose.{next(iter(wrong))}"):
        ComposeConfig(**wrong)
