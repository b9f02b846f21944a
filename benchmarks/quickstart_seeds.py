"""The closed loop against static training on the quickstart, over several seeds.

    python benchmarks/quickstart_seeds.py --seeds 0 1 2 --out runs/seeds [key=value ...]

Runs `looptool run --config quickstart` and the same with static=true (as many steps, seeds only) for every seed, one
after the other, and prints held-out accuracy before and after with paired standard errors, and the spread over seeds.
"""

import argparse
import json
import statistics
import subprocess
import time
from pathlib import Path

from looptool_jax.data.store import read_jsonl
from looptool_jax.evaluation.heldout import paired_difference


def run(out: Path, seed: int, static: bool, overrides: list[str]) -> tuple[Path, float]:
    run_dir = out / f"{'static' if static else 'loop'}-{seed}"
    started = time.monotonic()
    settings = [f"run_dir={run_dir}", f"seed={seed}", f"static={str(static).lower()}", *overrides]
    subprocess.run(["looptool", "run", "--config", "quickstart", *settings], check=True)
    return run_dir, time.monotonic() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("runs/seeds"))
    parser.add_argument("overrides", nargs="*")
    args = parser.parse_args()
    rows: list[dict] = []
    for seed in args.seeds:
        for static in (False, True):
            run_dir, seconds = run(args.out, seed, static, args.overrides)
            rounds = json.loads((run_dir / "manifest.json").read_text())["stages"]
            last = max(int(name.split("/")[0][6:]) for name in rounds if name.endswith("/eval"))
            before = list(read_jsonl(run_dir / "eval-0/results.jsonl"))
            after = list(read_jsonl(run_dir / f"round-{last}/eval/results.jsonl"))
            gain, error = paired_difference(before, after)
            accuracy = {name: rounds[name]["metrics"]["accuracy"] for name in ("eval-0", f"round-{last}/eval")}
            rows.append({
                "arm": "static" if static else "loop", "seed": seed, "before": accuracy["eval-0"],
                "after": accuracy[f"round-{last}/eval"], "gain": gain, "error": error, "seconds": seconds,
            })  # fmt: skip
    print(f"\n{'arm':7} {'seed':>4} {'before':>7} {'after':>7} {'gain':>7} {'± s.e.':>7} {'seconds':>8}")
    for row in rows:
        print(
            f"{row['arm']:7} {row['seed']:4} {100 * row['before']:6.1f}% {100 * row['after']:6.1f}% "
            f"{100 * row['gain']:+6.1f} {100 * row['error']:7.1f} {row['seconds']:8.0f}"
        )
    for arm in ("loop", "static"):
        gains = [100 * row["gain"] for row in rows if row["arm"] == arm]
        spread = statistics.stdev(gains) if len(gains) > 1 else float("nan")
        print(f"{arm:7} gain: mean {statistics.mean(gains):+.1f} points, spread over seeds (s.d.) {spread:.1f}")


if __name__ == "__main__":
    main()
