"""Exported results scored by the released `bfcl evaluate`, category by category, beside our own scores.

    python benchmarks/bfcl_export.py --peers DIR [--rows 20] [--seed 0]

The answers to the first rows of every category are right ones and seeded mutations of them (no model is run); they pass
through the evaluation and its export like a model's. The released program runs in an environment of its own
(benchmarks/peers/README.md).
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import bfcl_multi_turn_parity
import bfcl_parity
from peers.alternate import table

from looptool_jax.data.store import read_jsonl
from looptool_jax.evaluation.bfcl.data import CATEGORIES, read_category
from looptool_jax.evaluation.bfcl.evaluate import evaluate
from looptool_jax.evaluation.bfcl.export import export_results
from looptool_jax.evaluation.bfcl.multi_turn import read_multi_turn
from looptool_jax.inference.answers import Answer, AnswerConfig
from looptool_jax.toolcall import Sample

HERE = Path(__file__).parent


class Written:
    """Answers that are written beforehand, by what is asked; nothing else gets a call."""

    def __init__(self) -> None:
        self.texts: dict[str, str] = {}

    def prompt_length(self, sample: Sample) -> int:
        return 1

    def greedy(self, samples: Sequence[Sample], cfg: AnswerConfig, on_tokens: object) -> list[Answer]:
        return [Answer(self.texts.get(sample.id, "Done."), [], [], "stop") for sample in samples]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=Path, required=True, help="folder of the peers' environments")
    parser.add_argument("--rows", type=int, default=20, help="of each category")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    python = args.peers.absolute() / "bfcl-cli" / "bin" / "python"
    [data] = python.parent.parent.glob("lib/python*/site-packages/bfcl_eval/data")
    rng, policy = random.Random(args.seed), Written()
    rows, dialogues = [], []
    for category in CATEGORIES.values():
        if category.kind == "multi_turn":
            for row in read_multi_turn(data, category, args.rows):
                turns = bfcl_multi_turn_parity.texts(bfcl_multi_turn_parity.right(row))
                if rng.random() < 0.5:
                    turns, _ = bfcl_multi_turn_parity.mutated(row, rng)
                policy.texts |= {
                    f"{row.id}:{t}.{s}": text for t, turn in enumerate(turns) for s, text in enumerate(turn)
                }
                dialogues.append(row)
            continue
        for row in read_category(data, category, args.rows):
            text = bfcl_parity.written(bfcl_parity.right_calls(row))
            policy.texts[row.sample.id] = text if rng.random() < 0.5 else bfcl_parity.mutated(row, rng)[0]
            rows.append(row)
    with tempfile.TemporaryDirectory() as folder:
        scores = evaluate(policy, rows, dialogues, AnswerConfig(), folder, lambda count: None, lambda count: None)  # type: ignore[arg-type]
        export_results(list(read_jsonl(f"{folder}/results.jsonl")), folder)
        command = [python, HERE / "peers" / "bfcl_cli.py", "evaluate", "--model", "looptool", "--test-category",
                   "single_turn,multi_turn", "--partial-eval"]  # fmt: skip
        env = {**os.environ, "BFCL_PROJECT_ROOT": folder, "PYTHONPATH": ""}
        subprocess.run(command, check=True, env=env, stdout=subprocess.DEVNULL)
        lines, equal = [], True
        for name, ours in scores["categories"].items():
            file = Path(folder, "score", "looptool", CATEGORIES[name].group, f"BFCL_v4_{name}_score.json")
            theirs = json.loads(file.read_text().splitlines()[0])
            same = (theirs["accuracy"], theirs["total_count"]) == (ours["accuracy"], ours["rows"])
            equal = equal and same
            accuracies = (f"{100 * value:.2f}" for value in (ours["accuracy"], theirs["accuracy"]))
            lines.append([name, f"{ours['rows']}", *accuracies, "yes" if same else "no"])
        print(table(["category", "rows", "ours", "bfcl evaluate", "equal"], lines))
        for file, column, average in (
            ("data_overall.csv", "Overall Acc", "v4 Overall, missing as 0"),
            ("data_non_live.csv", "Non-Live Overall Acc", "v4 Non-Live"),
            ("data_live.csv", "Live Overall Acc", "v4 Live"),
            ("data_multi_turn.csv", "Multi Turn Overall Acc", "v4 Multi-Turn"),
        ):
            [line] = csv.DictReader(Path(folder, "score", file).read_text().splitlines())
            ours = f"{100 * scores['averages']['bfcl'][average]:.2f}%"
            equal = equal and line[column] == ours
            print(f"{average}: ours {ours}, bfcl evaluate {line[column]}")
        print("all equal" if equal else "not all equal")


if __name__ == "__main__":
    main()
