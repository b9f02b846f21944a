r"""Samples that teach a policy errors of single functions, for a loop that has to find them one by one.

    python benchmarks/specific_errors.py --to FILE [--samples 4000]
    looptool warmup --data FILE --model nano/judge --out specific warmup.rows=8 warmup.length=512 \
        warmup.learning_rate=5e-4 warmup.compute_dtype=float32

The embedded policy's bad habits are two decisions that hold for every function; whatever data undoes them anywhere
undoes them everywhere. Here half of the training functions have an error of their own: calls of such a one leave an
argument out, or shout (text in upper case), or write numbers as strings. The other labels are right, and held-out
functions appear nowhere.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

from looptool_jax.data.store import write_samples
from looptool_jax.loop.keys import random_for
from looptool_jax.toolcall import Call, Sample
from looptool_jax.world import generate, recognise

WORLD_SEED = 888_888  # not the runs', the evaluation's or the embedded model's


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--to", required=True, metavar="FILE")
    parser.add_argument("--samples", type=int, default=4000)
    args = parser.parse_args()
    right = generate("train", args.samples, WORLD_SEED)
    taught = [with_errors(sample) for sample in right]
    write_samples(args.to, taught)
    wrong = sum(one.target != other.target for one, other in zip(right, taught, strict=True))
    print(f"{len(taught)} samples, {wrong} with wrong labels -> {args.to}")


def with_errors(sample: Sample) -> Sample:
    functions = {tool.name: recognise(tool).leaf.key for tool in sample.tools}
    calls = tuple(Call(call.name, spoilt(functions[call.name], call.arguments)) for call in sample.target.calls)
    return replace(sample, target=replace(sample.target, calls=calls))


def spoilt(function: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments with the function's own error, the same in every call of it; as they are where it has none."""
    random = random_for("specific errors", function)
    error = random.choice(["left out", "shouts", "as text", "", "", ""])
    if error == "left out" and arguments:
        first = min(arguments, key=lambda name: random_for("specific errors", function, name).random())
        return {name: value for name, value in arguments.items() if name != first}
    if error == "shouts":
        return {name: value.upper() if isinstance(value, str) else value for name, value in arguments.items()}
    if error == "as text":
        return {
            name: json.dumps(value) if isinstance(value, int | float) else value for name, value in arguments.items()
        }
    return dict(arguments)


if __name__ == "__main__":
    main()
