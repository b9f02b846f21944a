"""In place of `looptool run`: the manifest, settings and verdicts of a run, without a model, as a test's plan says.

The file plan.json of the working directory holds, by a part of the trial's name, {"accuracy": [before, round 1, ...]},
{"fail": true} (exit status 2 behind the first round), {"wait": true} (until SIGTERM, then status 0 as a preempted run)
or {"kill": true} (SIGKILL to its process group). starts.txt gets a line at each start.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

from looptool_jax.config import keep_config, load_config
from looptool_jax.data.store import write_jsonl
from looptool_jax.loop.console import Console
from looptool_jax.loop.ledger import Ledger
from looptool_jax.loop.manifest import Manifest
from looptool_jax.loop.runner import Runner

ITEMS = 20


def main() -> None:
    assert sys.argv[1:3] == ["run", "--config"]
    overrides = [word for word in sys.argv[4:] if "=" in word]
    cfg = load_config(sys.argv[3], overrides)
    name = Path(cfg.run_dir).name
    with open("starts.txt", "a") as file:
        file.write(f"{name} rounds={cfg.rounds} {' '.join(word for word in sys.argv if word.startswith('--'))}\n")
    plan = next((found for part, found in json.loads(Path("plan.json").read_text()).items() if part in name), {})
    keep_config(cfg)
    manifest, ledger = Manifest(cfg.run_dir), Ledger(f"{cfg.run_dir}/ledger.jsonl")
    accuracies = plan.get("accuracy", [0.5] * (cfg.rounds + 1))
    for stage in Runner(cfg, Console(quiet=True)).stages():
        if manifest.done(stage.name):
            continue
        round_ = int(stage.name.partition("/")[0].removeprefix("round-")) if "/" in stage.name else 0
        if stage.name == "round-1/train":
            disturb(plan)
        metrics: dict = {"stage": stage.name}
        outputs: list[str] = []
        if stage.name.endswith(("eval", "eval-0")):
            right = round(ITEMS * accuracies[round_])
            rows = [{"id": f"item-{i}", "category": "single", "correct": i < right} for i in range(ITEMS)]
            write_jsonl(f"{cfg.run_dir}/{stage.outputs[0]}", rows)
            outputs = list(stage.outputs)
            by_category = {"single": {"items": ITEMS, "accuracy": right / ITEMS}}
            metrics = {"items": ITEMS, "accuracy": right / ITEMS, "interval95": 0.1, "by_category": by_category}
        elif stage.name.endswith("train"):
            metrics = {"reward_last": 0.25 * round_, "reward_first": 0.1}
        elif stage.name.endswith("score"):
            repair = {"precision": 0.5, "recall": 0.25, "repaired": 0.2, "harm": None}
            metrics = {"label_repair": repair, "noise_before": {"share": 0.25}, "noise_after": {"share": 0.1}}
        ledger.record(stage.name, 1.0, 10)
        manifest.commit(stage.name, (), outputs, metrics)


def disturb(plan: dict) -> None:
    if "fail" in plan:
        print("some lines before")
        sys.exit("looptool: \x1b[31mthe weights are gone")
    if "kill" in plan:
        os.killpg(os.getpgrp(), signal.SIGKILL)
    if "wait" in plan:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        Path("waiting").touch()
        time.sleep(60)
        sys.exit("nobody told this trial to stop")


main()
