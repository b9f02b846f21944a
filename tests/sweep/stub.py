"""In place of `looptool run`: manifest, cost and verdicts of a run of micro, without a model, as a test's plan says.

The file plan.json of the working directory holds, by a part of the trial's name, {"accuracy": [before, round 1, ...]},
{"fail": true} (exit status 2 in round 1), {"wait": true} (until SIGTERM, then status 0 as a preempted run) or
{"kill": true} (SIGKILL to its process group). With `--process 1` it waits for the process that does this. starts.txt
gets a line at each start. Imports nothing of the program, so that it starts at once.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

ITEMS = 20
LOOP = ("train", "eval", "probe", "judge", "expand", "compose", "score")


def main() -> None:
    assert sys.argv[1:4] == ["run", "--config", "micro"]
    settings = dict(word.split("=", 1) for word in sys.argv[4:] if "=" in word)
    run_dir, rounds = Path(settings["run_dir"]), int(settings.get("rounds", 2))
    if sys.argv[-2:] == ["--process", "1"]:
        wait_for_first(run_dir / "manifest.json", f"round-{rounds}/score")
        return
    with open("starts.txt", "a") as file:
        file.write(f"{run_dir.name} rounds={rounds}\n")
    plan = next(
        (found for part, found in json.loads(Path("plan.json").read_text()).items() if part in run_dir.name), {}
    )
    accuracies = plan.get("accuracy", [0.5] * (rounds + 1))
    manifest, stages = run_dir / "manifest.json", {}
    if manifest.exists():
        stages = json.loads(manifest.read_text())["stages"]
    for name in ["seed", "eval-0", *(f"round-{j}/{stage}" for j in range(1, rounds + 1) for stage in LOOP)]:
        if name in stages:
            continue
        if name == "round-1/train":
            disturb(plan)
        round_ = int(name.partition("/")[0].removeprefix("round-")) if "/" in name else 0
        stages[name] = {"inputs": {}, "outputs": {}, "metrics": metrics(name, round_, accuracies[round_], run_dir)}
        with open(run_dir / "ledger.jsonl", "a") as file:
            file.write(json.dumps({"stage": name, "seconds": 1.0, "tokens": 10}) + "\n")
        manifest.with_suffix(".new").write_text(json.dumps({"stages": stages}))
        manifest.with_suffix(".new").replace(manifest)


def metrics(name: str, round_: int, accuracy: float, run_dir: Path) -> dict:
    folder, right = run_dir / name, round(ITEMS * accuracy)
    folder.mkdir(parents=True, exist_ok=True)
    if "eval" in name:
        rows = [{"id": f"item-{i}", "category": "single", "correct": i < right} for i in range(ITEMS)]
        (folder / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        by_category = {"single": {"items": ITEMS, "accuracy": right / ITEMS}}
        return {"items": ITEMS, "accuracy": right / ITEMS, "interval95": 0.1, "by_category": by_category}
    if name.endswith("train"):
        return {"reward_last": 0.25 * round_, "reward_first": 0.1}
    if name.endswith("score"):
        repair = {"precision": 0.5, "recall": 0.25, "repaired": 0.2, "harm": None}
        return {"label_repair": repair, "noise_before": {"share": 0.25}, "noise_after": {"share": 0.1}}
    return {}


def wait_for_first(manifest: Path, last: str) -> None:
    """As a process that is not the first, which writes nothing and ends with the others."""
    for _ in range(600):
        if manifest.exists() and last in manifest.read_text():
            return
        time.sleep(0.05)
    sys.exit("the first process did not come")


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
