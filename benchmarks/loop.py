"""Seconds of every stage of a round on the embedded model, and how they grow with samples, prompts and groups.

    python benchmarks/loop.py [--json FILE]

One round of the quickstart (train, evaluate, probe, judge, expand, compose) for each setting, in a process of its own
with a filled compilation cache: every setting is run twice and the second is shown.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from peers.alternate import table

BASE = ["rounds=1", "data.pool=1200", "data.round_size=1000", "data.heldout=200", "--quiet"]
SETTINGS = {
    "1,000 samples": [],
    "500 samples": ["data.round_size=500", "data.pool=600"],
    "group of 4": ["train.group=4"],
    "group of 16": ["train.group=16"],
    "prompts of up to 256 tokens": [
        *(f"{stage}.answers.prompt_tokens=256" for stage in ("train", "probe", "evaluate")),
        "expand.verify_answers.prompt_tokens=256",
    ],
}
STAGES = ("seed", "eval-0", "train", "eval", "probe", "judge", "expand", "compose")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--settings", nargs="+", choices=list(SETTINGS), default=list(SETTINGS))
    parser.add_argument("--json", type=Path, help="where everything measured is written")
    args = parser.parse_args()
    seconds = {name: measured(SETTINGS[name]) for name in args.settings}
    rows = [
        [name, *(f"{stages.get(stage, 0):.1f}" for stage in STAGES), f"{sum(stages.values()):.0f}"]
        for name, stages in seconds.items()
    ]
    print(table(["seconds", *STAGES, "all"], rows))
    if args.json:
        args.json.write_text(json.dumps(seconds, indent=1))


def measured(settings: list[str]) -> dict[str, float]:
    """Seconds by stage."""
    with tempfile.TemporaryDirectory() as folder:
        for name in ("first", "second"):
            run_dir = Path(folder) / name
            command = [
                sys.executable, "-c", "from looptool_jax.cli import main; main()", "run", *BASE, *settings,
                f"run_dir={run_dir}",
            ]  # fmt: skip
            subprocess.run(command, check=True, env={**os.environ, "JAX_PLATFORMS": "cpu"})
        rows = [json.loads(line) for line in (run_dir / "ledger.jsonl").read_text().splitlines()]
    return {row["stage"].split("/")[-1]: row["seconds"] for row in rows}


if __name__ == "__main__":
    main()
