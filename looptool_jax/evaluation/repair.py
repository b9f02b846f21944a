"""Label repair and expansion against the hidden truth: what the paper never reports.

Only this module reads the truth that the noise injector keeps apart.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from looptool_jax.data.store import read_jsonl
from looptool_jax.toolcall import Parsed, Sample, Target, match
from looptool_jax.world import Truth, validate

Labels = dict[str, Target]


def true_labels(pool: Iterable[Sample], truth_file: str) -> Labels:
    """The right label of every seed by its id: the pool's, or the truth where the injector corrupted it."""
    labels = {sample.id: sample.target for sample in pool}
    for row in read_jsonl(truth_file):
        truth = Truth.from_json(row)
        labels[truth.sample_id] = truth.target
    return labels


def is_right(sample: Sample, label: Target, labels: Labels) -> bool:
    """Whether a label of the sample equals its true one under the strict matcher."""
    return match(Parsed(label.calls, label.text, ""), labels[sample.id], sample.tools).ok


def label_repair(
    samples: Sequence[Sample], repaired: Sequence[Sample], judgements: Sequence[dict[str, Any]], labels: Labels
) -> dict[str, Any]:
    """Precision, recall and harm of LABEL_WRONG over the seeds among the probed `samples`.

    precision: share of the replaced labels that were wrong. recall: share of the wrong labels that were replaced;
    repaired: that were replaced by the right one; removed: whose sample left the data (set aside or discarded).
    harm: share of the right labels that were replaced by a wrong one. `repaired` holds the error seeds.
    """
    seeds = [sample for sample in samples if sample.id in labels]
    wrong = {sample.id for sample in seeds if not is_right(sample, sample.target, labels)}
    verdicts = {row["id"]: row["verdict"] for row in judgements if row["id"] in labels}
    replaced = {id_ for id_, verdict in verdicts.items() if verdict == "label_wrong"}
    now_right = {sample.id for sample in repaired if sample.id in replaced and is_right(sample, sample.target, labels)}
    gone = {id_ for id_, verdict in verdicts.items() if verdict in ("both_wrong", "undecided")}
    return {
        "seeds": len(seeds),
        "wrong_labels": len(wrong),
        "replaced": len(replaced),
        "precision": _ratio(len(replaced & wrong), len(replaced)),
        "recall": _ratio(len(replaced & wrong), len(wrong)),
        "repaired": _ratio(len(now_right & wrong), len(wrong)),
        "removed": _ratio(len(gone & wrong), len(wrong)),
        "harm": _ratio(len(replaced - wrong - now_right), len(seeds) - len(wrong)),
    }


def remaining_noise(samples: Sequence[Sample], labels: Labels) -> dict[str, Any]:
    """How many labels of a data set are wrong, among those whose truth is known (the seeds)."""
    known = [sample for sample in samples if sample.id in labels]
    wrong = sum(not is_right(sample, sample.target, labels) for sample in known)
    return {"known": len(known), "wrong": wrong, "share": _ratio(wrong, len(known))}


def expansion_validity(samples: Sequence[Sample]) -> dict[str, Any]:
    """Share of samples whose label executes in the world and follows from the request."""
    return {"samples": len(samples), "valid": _ratio(sum(not validate(sample) for sample in samples), len(samples))}


def _ratio(part: int, whole: int) -> float | None:
    """None where there is nothing to take a share of."""
    return round(part / whole, 6) if whole else None
