"""Label repair at several shares of noise: what the judge finds, what it breaks, and what more votes change.

    python benchmarks/label_repair.py [--split heldout|train] [--samples 400] [--noise 0.05 0.1 0.2 0.4] [key=value ...]

The embedded policy answers samples of the world, some with wrong labels; every mismatch goes to the judge in each way.
Overrides name another judge (`judge_model.path=...`). precision: replaced labels that were wrong; recall: wrong labels
that were replaced; harm: right labels that were replaced by wrong ones; right verdicts: of the decided ones, by what
label and answer are in truth, also where label or answer is a text. Two more tables, all shares of noise together: what
becomes of each kind of wrong label, and what is said of each true state of label and answer.
"""

from __future__ import annotations

import tempfile
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from labelled import Labelled, arguments, labelled, true_verdict
from peers.alternate import table

from looptool_jax.config import load_config
from looptool_jax.data.store import read_jsonl
from looptool_jax.evaluation.repair import is_right, label_repair
from looptool_jax.loop.console import Console
from looptool_jax.loop.judge import ErrorSeed, judge
from looptool_jax.loop.pool import ModelPool
from looptool_jax.toolcall import Parsed, Sample, parse

WAYS: dict[str, dict[str, Any]] = {
    "label first": {"order_swap": False},
    "both orders": {},
    "both orders, 3 votes": {"votes": 3},
    "both orders, confirmed": {"confirm": True},
}
HEAD = [
    "noise", "way", "wrong labels", "mismatches", "undecided", "replaced", "precision", "recall", "harm",
    "right verdicts", "with a text",
]  # fmt: skip
VERDICTS = ("prediction_wrong", "label_wrong", "both_correct", "both_wrong", "undecided")
OUTCOMES = ("repaired", "replaced wrongly", "set aside", "kept", "learnt")  # learnt: the policy answers the same


def main() -> None:
    args = arguments(__doc__, samples=400, noise=[0.05, 0.1, 0.2, 0.4]).parse_args()
    cfg, console = load_config("quickstart", args.overrides), Console(quiet=True)
    rows: list[list[Any]] = []
    kinds: dict[str, dict[str, Counter[str]]] = {name: defaultdict(Counter) for name in WAYS}
    said: dict[str, Counter[tuple[str, str]]] = {name: Counter() for name in WAYS}
    with tempfile.TemporaryDirectory() as out:
        pool = ModelPool(cfg.mesh, out)
        for noise in args.noise:
            data = labelled(pool.lend(cfg.policy), cfg, args, noise, f"{out}/{noise}", console)
            judge_model = pool.lend(cfg.judge_model)
            kind_of = {row["sample_id"]: row["kind"] for row in read_jsonl(f"{out}/{noise}/truth.jsonl")}
            for name, way in WAYS.items():
                settings = replace(cfg.judge, **({"confirm": False} | way))
                folder = f"{out}/{noise}/{name}"
                metrics = judge(judge_model, data.noisy, data.probes, 0, 1, settings, folder, console)
                judgements = list(read_jsonl(f"{folder}/judgements.jsonl"))
                errors = [ErrorSeed.from_json(row).sample for row in read_jsonl(f"{folder}/errors.jsonl")]
                repair = label_repair(data.noisy, errors, judgements, data.labels)
                rows.append([
                    f"{noise:.0%}", name, repair["wrong_labels"], metrics["mismatches"], metrics["undecided"],
                    repair["replaced"], *(share(repair[key]) for key in ("precision", "recall", "harm")),
                    *right_verdicts(data, judgements),
                ])  # fmt: skip
                said[name].update(verdicts(data, judgements))
                for id_, outcome in outcomes(data, errors, judgements).items():
                    kinds[name][kind_of[id_]][outcome] += 1
    print(f"{len(data.samples)} samples, split {args.split}\n")
    print(table(HEAD, [[str(cell) for cell in row] for row in rows]), "\n")
    print(table(["kind of wrong label", "way", "labels", *OUTCOMES], [
        [kind, name, str(found.total()), *(str(found[outcome]) for outcome in OUTCOMES)]
        for name in WAYS for kind, found in sorted(kinds[name].items())
    ]), "\n")  # fmt: skip
    print(table(["in truth", "way", *VERDICTS], [
        [true, name, *(str(found[true, given]) for given in VERDICTS)] for name, found in said.items()
        for true in VERDICTS[:-1]
    ]))  # fmt: skip


def outcomes(data: Labelled, errors: Sequence[Sample], judgements: Sequence[dict[str, Any]]) -> dict[str, str]:
    """What became of every wrong label, by its sample's id; one of OUTCOMES."""
    verdict = {row["id"]: row["verdict"] for row in judgements}
    now = {sample.id: sample for sample in errors}
    found = {}
    for sample in data.noisy:
        if is_right(sample, sample.target, data.labels):
            continue
        given = verdict.get(sample.id)
        if given is None:
            outcome = "learnt"
        elif given == "label_wrong":
            outcome = "repaired" if is_right(sample, now[sample.id].target, data.labels) else "replaced wrongly"
        else:
            outcome = "set aside" if given in ("both_wrong", "undecided") else "kept"
        found[sample.id] = outcome
    return found


def verdicts(data: Labelled, judgements: Sequence[dict[str, Any]]) -> list[tuple[str, str]]:
    """The true verdict and the judge's, of every mismatch."""
    by_id = {sample.id: sample for sample in data.noisy}
    return [(true_verdict(by_id[row["id"]], row["answer"], data.labels), row["verdict"]) for row in judgements]


def right_verdicts(data: Labelled, judgements: Sequence[dict[str, Any]]) -> tuple[str, str]:
    """How many decided verdicts are the true ones: of all, and of those where the label or the answer is a text."""
    by_id = {sample.id: sample for sample in data.noisy}
    decided = [row for row in judgements if row["verdict"] != "undecided"]
    right = [row["verdict"] == true_verdict(by_id[row["id"]], row["answer"], data.labels) for row in decided]
    text = [
        not by_id[row["id"]].target.is_call or not (isinstance(read := parse(row["answer"]), Parsed) and read.calls)
        for row in decided
    ]
    both = sum(good and is_text for good, is_text in zip(right, text, strict=True))
    return f"{sum(right)} of {len(right)}", f"{both} of {sum(text)}"


def share(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"


if __name__ == "__main__":
    main()
