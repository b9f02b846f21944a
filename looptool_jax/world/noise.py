"""Label noise with the truth kept: a known share of labels is made wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any

from looptool_jax.toolcall.records import Sample, Target
from looptool_jax.world.corrupt import corrupt
from looptool_jax.world.errors import WorldError


@dataclass(frozen=True)
class Truth:
    """The right target of a sample whose label was corrupted, and the kind of the corruption."""

    sample_id: str
    kind: str
    target: Target

    def to_json(self) -> dict[str, Any]:
        return {"sample_id": self.sample_id, "kind": self.kind, "target": self.target.to_json()}

    @staticmethod
    def from_json(raw: dict[str, Any]) -> Truth:
        return Truth(raw["sample_id"], raw["kind"], Target.from_json(raw["target"]))


def inject(samples: Sequence[Sample], share: float, seed: int) -> tuple[list[Sample], list[Truth]]:
    """Corrupt exactly round(share · n) labels. Returns all samples in their order and one Truth per corrupted label.

    Which samples and how is fixed by the seed and the sample ids; one whose label cannot be made wrong (a text, and no
    tool to call instead) makes way for the next. No stage but evaluation may read the truth.
    Raises WorldError if share is not between 0 and 1, or fewer labels can be made wrong.
    """
    if not 0 <= share <= 1:
        raise WorldError(f"noise: the share must lie between 0 and 1, found {share}")
    wanted = round(share * len(samples))
    noisy = list(samples)
    truth: dict[int, Truth] = {}
    for index in Random(f"noise/{seed}").sample(range(len(samples)), len(samples)):
        if len(truth) == wanted:
            break
        sample = samples[index]
        try:
            wrong, kind, _ = corrupt(sample.target, sample.tools, sample.messages, Random(f"noise/{seed}/{sample.id}"))
        except WorldError:
            continue
        truth[index] = Truth(sample.id, kind, sample.target)
        noisy[index] = replace(sample, target=wrong)
    if len(truth) < wanted:
        raise WorldError(f"noise: only {len(truth)} of {len(samples)} labels can be made wrong, {wanted} are wanted")
    return noisy, [truth[index] for index in sorted(truth)]
