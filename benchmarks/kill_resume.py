"""Kill a run at random moments, resume it each time with the same command, and compare with an undisturbed run.

    python benchmarks/kill_resume.py --config quickstart --kills 20 --out runs/kill [key=value ...]

Prints the moments and, at the end, whether the two manifests are equal byte for byte. Exit status 1 if not.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path


def start(config: str, run_dir: Path, overrides: list[str]) -> subprocess.Popen[bytes]:
    command = ["looptool", "run", "--config", config, f"run_dir={run_dir}", *overrides]
    with open(f"{run_dir}.log", "ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="quickstart")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the random moments")
    parser.add_argument("--out", type=Path, default=Path("runs/kill"))
    parser.add_argument("overrides", nargs="*")
    args = parser.parse_args()
    if any((args.out / name).exists() for name in ("undisturbed", "killed")):
        sys.exit(f"{args.out}: holds runs already; choose another --out")
    args.out.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    if start(args.config, args.out / "undisturbed", args.overrides).wait() != 0:
        sys.exit(f"the undisturbed run failed: see {args.out}/undisturbed.log")
    whole = time.monotonic() - started
    print(f"undisturbed: {whole:.0f} s")
    moments = random.Random(args.seed)
    kills = 0
    while kills < args.kills:
        process = start(args.config, args.out / "killed", args.overrides)
        # A resumed process needs some seconds to start; twice the mean share of the run leaves time for all kills.
        moment = moments.uniform(1.0, 2.0 * whole / args.kills + 15.0)
        try:
            process.wait(timeout=moment)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            kills += 1
            print(f"kill {kills} after {moment:.1f} s", flush=True)
            continue
        if process.returncode:
            sys.exit(f"a resumed run failed: see {args.out}/killed.log")
        print(f"the run ended after {kills} kills; its first {args.kills} moments were too late")
        break
    if start(args.config, args.out / "killed", args.overrides).wait() != 0:
        sys.exit(f"the last resumed run failed: see {args.out}/killed.log")
    same = (args.out / "killed/manifest.json").read_bytes() == (args.out / "undisturbed/manifest.json").read_bytes()
    print(f"{kills} kills; manifests {'equal, byte for byte' if same else 'DIFFER'}")
    sys.exit(0 if same and kills == args.kills else 1)


if __name__ == "__main__":
    main()
