"""Verdicts that are scored against verdicts that are written: how often they agree, how often they are right, seconds.

    python benchmarks/verdicts.py [--split heldout|train] [--samples 200] [--noise 0.2] [key=value ...]

The embedded policy answers samples of the world, some with wrong labels; every mismatch goes to the judge in both
orders, once in each way. Overrides name another judge (`judge_model.path=...`). Seconds are of a second run, compiled.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import replace
from typing import Any

from labelled import arguments, labelled
from peers.alternate import table

from looptool_jax.config import load_config
from looptool_jax.data.store import read_jsonl
from looptool_jax.evaluation.repair import label_repair
from looptool_jax.loop.console import Console
from looptool_jax.loop.judge import ErrorSeed, judge
from looptool_jax.loop.pool import ModelPool


def main() -> None:
    args = arguments(__doc__, samples=200, noise=[0.2]).parse_args()
    cfg, console = load_config("quickstart", args.overrides), Console(quiet=True)
    with tempfile.TemporaryDirectory() as out:
        pool = ModelPool(cfg.mesh, out)
        samples, noisy, labels, probes = labelled(pool.lend(cfg.policy), cfg, args, args.noise[0], out, console)
        judge_model = pool.lend(cfg.judge_model)
        found: dict[str, list[dict[str, Any]]] = {}
        rows = []
        for how in ("written", "scored"):
            settings = replace(cfg.judge, verdicts=how, confirm=False, rules_first=False)
            for attempt in ("compiled", "timed"):
                start = time.perf_counter()
                folder = f"{out}/{how}/{attempt}"
                metrics = judge(judge_model, noisy, probes, 0, 1, settings, folder, console)
                seconds = time.perf_counter() - start
            found[how] = list(read_jsonl(f"{folder}/judgements.jsonl"))
            errors = [ErrorSeed.from_json(row).sample for row in read_jsonl(f"{folder}/errors.jsonl")]
            repair = label_repair(noisy, errors, found[how], labels)
            rows.append([
                how, f"{seconds:.1f}", f"{metrics['agreement']:.0%}", f"{metrics['unparsed_replies']}",
                f"{metrics['prediction_wrong']}", f"{metrics['label_wrong']}", f"{repair}",
            ])  # fmt: skip
    votes = [pair for a, b in zip(*found.values(), strict=True) for pair in zip(a["votes"], b["votes"], strict=True)]
    both = [(a, b) for a, b in votes if a is not None and b is not None]
    same = sum(row["verdict"] == other["verdict"] for row, other in zip(*found.values(), strict=True))
    print(f"{len(votes) // 2} mismatches of {len(samples)} samples, {args.noise[0]:.0%} of the labels wrong")
    print(f"a pair in one order: {sum(a == b for a, b in both)} of {len(both)} verdicts equal")
    print(f"both orders together: {same} of {len(votes) // 2} equal\n")
    head = ["verdicts", "seconds", "orders agree", "no verdict", "prediction wrong", "label wrong", "label repair"]
    print(table(head, rows))


if __name__ == "__main__":
    main()
