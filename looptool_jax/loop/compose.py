"""Composition of the next round's data set (paper, section 4.5, Eq. 5 and Table 3).

D_{j+1} = error seeds ∪ expanded ∪ high-perplexity mastered ∪ new seeds, of the same size as D_j.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from looptool_jax.loop.keys import random_for
from looptool_jax.toolcall import Origin, Sample

PARTS = ("error", "expanded", "high_ppl", "seed_new")

# Table 3 of the paper: shares of the parts in D_2, D_3 and D_4.
PAPER_SHARES = [[0.1048, 0.3587, 0.2287, 0.3077], [0.1850, 0.4407, 0.2205, 0.1538], [0.2038, 0.4463, 0.2729, 0.0769]]


@dataclass
class ComposeConfig:
    """How D_{j+1} is filled.

    shares: one row [error, expanded, high_ppl, seed_new] for each composed set; the last row serves all later ones.
    errors: "share" (as many error seeds as their share) or "all" (every one, as Eq. 5 has it; the other parts divide
        what is left in the ratio of their shares). The two are the same where the policy fails as often as the paper's.
    error_order: which error seeds come first. "random", or "solved": those that a rollout of the round answered as
        their label says, then those whose label was repaired, which the policy answers already, and last those that no
        rollout answered: they taught GRPO nothing, and more of their labels are wrong.
    high_ppl: which mastered samples are the hard ones. "top" (highest perplexity first), "quantile" or "absolute" (only
        at or above `high_ppl_threshold`, a share of the mastered samples or a perplexity, highest first), "pass_rate"
        (those first that the fewest rollouts of the round answered rightly), or "random" (the paper's ablation: random
        mastered samples). The paper gives no rule.
    high_ppl_threshold: of "quantile", from 0 to below 1, or of "absolute", at least 1.
    both_correct: "high_ppl" (section 4.3: may enter as high-perplexity samples) or "discard" (Algorithm 1).
    expanded_part: "expand"; or an ablation of it: "drop" (the set is smaller), "high_ppl" (as many high-perplexity
        samples instead) or "repeat_errors" (the set's error seeds repeated to the same size).
    """

    shares: list[list[float]] = field(default_factory=lambda: [list(row) for row in PAPER_SHARES])
    errors: str = "share"
    error_order: str = "random"
    high_ppl: str = "top"
    high_ppl_threshold: float = 0.5
    both_correct: str = "high_ppl"
    expanded_part: str = "expand"

    @property
    def uses_pass_rates(self) -> bool:
        return self.error_order == "solved" or self.high_ppl == "pass_rate"

    def __post_init__(self) -> None:
        _check("compose.errors", self.errors, ("share", "all"))
        _check("compose.error_order", self.error_order, ("random", "solved"))
        _check("compose.high_ppl", self.high_ppl, ("top", "quantile", "absolute", "pass_rate", "random"))
        _check("compose.both_correct", self.both_correct, ("high_ppl", "discard"))
        _check("compose.expanded_part", self.expanded_part, ("expand", "drop", "high_ppl", "repeat_errors"))
        for row in self.shares:
            if len(row) != len(PARTS) or any(share < 0 for share in row) or not 0.99 <= sum(row) <= 1.01:
                raise ValueError(f"compose.shares: each row needs 4 shares {PARTS} that add up to 1, found {list(row)}")
        if not self.shares:
            raise ValueError("compose.shares: at least one row is needed")
        at = self.high_ppl_threshold
        if self.high_ppl == "quantile" and not 0 <= at < 1:
            raise ValueError(f"compose.high_ppl_threshold: a quantile is from 0 to below 1, found {at}")
        if self.high_ppl == "absolute" and not at >= 1:
            raise ValueError(f"compose.high_ppl_threshold: a perplexity is at least 1, found {at}")


@dataclass(frozen=True)
class Mastered:
    """A correctly answered sample with the perplexity of its answer (Eq. 3)."""

    sample: Sample
    perplexity: float


@dataclass(frozen=True)
class Part:
    """A row of the composition table: how many were wanted, at hand, taken, and taken to fill other parts."""

    name: str
    wanted: int
    available: int
    taken: int
    filled: int

    def to_json(self) -> dict[str, int | str]:
        return {
            "part": self.name,
            "wanted": self.wanted,
            "available": self.available,
            "taken": self.taken,
            "filled": self.filled,
        }


@dataclass(frozen=True)
class Composition:
    samples: list[Sample]
    parts: list[Part]


def part_sizes(size: int, round_: int, cfg: ComposeConfig, errors: int) -> dict[str, int]:
    """Wanted size of each part of D_{round_+1} with so many error seeds at hand; rounding goes to the high-perplexity
    part, the paper's filler.

    Where that part is too small to be rounded down, the largest one is.
    """
    row = dict(zip(PARTS, cfg.shares[min(round_ - 1, len(cfg.shares) - 1)], strict=True))
    if cfg.errors == "all" and (others := sum(row.values()) - row["error"]) > 0:
        own = min(1.0, errors / size)
        row = {part: share * (1 - own) / others for part, share in row.items()} | {"error": own}
    sizes = {part: round(size * share) for part, share in row.items()}
    sizes["high_ppl"] += size - sum(sizes.values())
    if sizes["high_ppl"] < 0:
        sizes[max(sizes, key=lambda part: sizes[part])] += sizes["high_ppl"]
        sizes["high_ppl"] = 0
    return sizes


def seeds_to_expand(
    errors: Sequence[Sample], rates: Mapping[str, float], size: int, seed: int, round_: int, cfg: ComposeConfig
) -> list[Sample]:
    """The error seeds to expand: as many as D_{round_+1} takes, of those whose label is a call (no others are
    expanded), in the order in which the composition takes them."""
    calls = [sample for sample in _ordered(errors, rates, seed, round_, cfg) if sample.target.is_call]
    return calls[: part_sizes(size, round_, cfg, len(errors))["error"]]


def compose(
    errors: Sequence[Sample],
    rates: Mapping[str, float],
    expanded: Sequence[Sample],
    mastered: Sequence[Mastered],
    untrained: Sequence[Sample],
    size: int,
    seed: int,
    round_: int,
    cfg: ComposeConfig,
) -> Composition:
    """Build D_{round_+1} of `size` samples from the outcome of round `round_`.

    Where a part cannot be filled, high-perplexity samples fill it, then new seeds, any mastered sample, and at last
    expanded samples and error seeds beyond their own parts.
    errors: error seeds with their (possibly repaired) label and an `error` origin. rates: the share of the round's
    rollouts that answered a sample of D_j rightly, by its id. untrained: seeds never trained on, in the order in which
    they are to be used.
    """
    sizes = part_sizes(size, round_, cfg, len(errors))
    eligible = _high_ppl(mastered, rates, seed, round_, cfg)
    ranked = [item.sample.moved(_origin("high_ppl", round_, item)) for item in eligible]
    chosen = {sample.id for sample in ranked}
    rest = [
        item.sample.moved(_origin("mastered", round_, item))
        for item in _shuffled(mastered, "mastered", seed, round_)
        if item.sample.id not in chosen
    ]
    seeds = _ordered(errors, rates, seed, round_, cfg)
    more: list[Sample] = _shuffled(expanded, "expanded", seed, round_)
    if cfg.expanded_part == "repeat_errors":
        more = _repeated(seeds[: sizes["error"]], sizes["expanded"], round_)
    elif cfg.expanded_part == "high_ppl":
        sizes["high_ppl"] += sizes["expanded"]
        sizes["expanded"], more = 0, []
    elif cfg.expanded_part == "drop":
        size -= sizes["expanded"]
        sizes["expanded"], more = 0, []
    pools = {
        "error": seeds,
        "expanded": more,
        "high_ppl": ranked,
        "seed_new": [sample.moved(Origin("seed_new", round_ + 1)) for sample in untrained],
        "mastered": rest,
    }
    sizes["mastered"] = 0
    taken = {name: pool[: sizes[name]] for name, pool in pools.items()}
    filled = dict.fromkeys(pools, 0)
    missing = size - sum(len(part) for part in taken.values())
    for name in ("high_ppl", "seed_new", "mastered", "expanded", "error"):
        extra = pools[name][len(taken[name]) : len(taken[name]) + missing]
        taken[name] = taken[name] + extra
        filled[name] = len(extra)
        missing -= len(extra)
    parts = [Part(name, sizes[name], len(pools[name]), len(taken[name]), filled[name]) for name in pools]
    return Composition([sample for part in taken.values() for sample in part], parts)


def compose_static(
    pool: Sequence[Sample], untrained: Sequence[Sample], size: int, seed: int, round_: int
) -> Composition:
    """The static baseline's D_{round_+1}: new seeds first, then seeds seen before, in a keyed random order."""
    fresh = [sample.moved(Origin("seed_new", round_ + 1)) for sample in untrained[:size]]
    names = {sample.id for sample in fresh}
    seen = [sample for sample in _shuffled(pool, "static", seed, round_) if sample.id not in names]
    again = [sample.moved(Origin("seed", round_ + 1)) for sample in seen[: size - len(fresh)]]
    parts = [
        Part("seed_new", size, len(untrained), len(fresh), 0),
        Part("seed", 0, len(seen), len(again), len(again)),
    ]
    return Composition(fresh + again, parts)


def _ordered(
    errors: Sequence[Sample], rates: Mapping[str, float], seed: int, round_: int, cfg: ComposeConfig
) -> list[Sample]:
    order = _shuffled(errors, "errors", seed, round_)
    if cfg.error_order == "random":
        return order
    repaired = [sample for sample in order if sample.origin.verdict == "label_wrong"]
    missed = [sample for sample in order if sample.origin.verdict != "label_wrong"]
    solved, never = ([s for s in missed if (rates.get(s.id, 0.0) > 0) == some] for some in (True, False))
    return solved + repaired + never


def _high_ppl(
    mastered: Sequence[Mastered], rates: Mapping[str, float], seed: int, round_: int, cfg: ComposeConfig
) -> list[Mastered]:
    if cfg.high_ppl == "random":
        return _shuffled(mastered, "random-mastered", seed, round_)
    if cfg.high_ppl == "pass_rate":
        return sorted(mastered, key=lambda item: (rates.get(item.sample.id, 1.0), -item.perplexity, item.sample.id))
    ranked = sorted(mastered, key=lambda item: (-item.perplexity, item.sample.id))
    if cfg.high_ppl == "quantile":
        return ranked[: round(len(ranked) * (1.0 - cfg.high_ppl_threshold))]
    if cfg.high_ppl == "absolute":
        return [item for item in ranked if item.perplexity >= cfg.high_ppl_threshold]
    return ranked


def _repeated(errors: Sequence[Sample], count: int, round_: int) -> list[Sample]:
    if not errors:
        return []
    return [
        replace(
            errors[i % len(errors)].moved(Origin("repeated", round_ + 1, parent=errors[i % len(errors)].id)),
            id=f"{errors[i % len(errors)].id}.r{round_}x{i // len(errors) + 1}",
        )
        for i in range(count)
    ]


def _origin(kind: str, round_: int, item: Mastered) -> Origin:
    return Origin(kind, round_ + 1, perplexity=item.perplexity)  # type: ignore[arg-type]


def _shuffled(items: Sequence, purpose: str, seed: int, round_: int) -> list:
    order = list(items)
    random_for(seed, round_, "compose", purpose).shuffle(order)
    return order


def _check(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name}: expected one of {', '.join(choices)}, found {value!r}")
