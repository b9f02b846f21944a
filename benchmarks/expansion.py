"""Error-driven expansion of finished runs: what passes, how new it is, whether it is right, harder and worth it.

    python benchmarks/expansion.py RUN_DIR [RUN_DIR ...]
    python benchmarks/expansion.py RUN_DIR --grammar

Of the world's runs, whose truth is known; those that differ by seed alone (NAME,seed=N, as in a sweep's folder) count
together. For every round: how many new samples each tier takes out; how far the accepted ones are from their seeds; how
many execute in the world and follow from their request; the accuracy on them of the policy that was probed, beside that
on the error seeds it answered wrongly though their label is right; and the next round's policy on the same (paper,
figure 3), with Wilson's 95 % interval. Runs with compose.expanded_part=repeat_errors, say, stand beside them.

--grammar: every round's error seeds are expanded anew in place of that, as the run is configured and with the generator
held to the tools' schemas; programs are compiled before.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import mean

os.environ.setdefault("JAX_PLATFORMS", "cpu")

from peers.alternate import table

from looptool_jax.config import load_config
from looptool_jax.data.store import exists, join, read_jsonl, read_samples
from looptool_jax.evaluation.heldout import evaluate
from looptool_jax.evaluation.repair import is_right, true_labels
from looptool_jax.evaluation.statistics import wilson
from looptool_jax.loop.console import Console
from looptool_jax.loop.expand import expand
from looptool_jax.loop.judge import ErrorSeed
from looptool_jax.loop.manifest import data_file
from looptool_jax.loop.pool import ModelPool
from looptool_jax.loop.run_config import RunConfig
from looptool_jax.toolcall import Sample
from looptool_jax.world import validate

PASSED = ("written", "unread", "rules", "judge", "duplicates", "accepted", "valid")
SETS = ("new", "new, valid", "error seeds", "in the next set", "with valid new ones")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="RUN_DIR")
    parser.add_argument("--grammar", action="store_true", help="with expand.grammar and without")
    args = parser.parse_args()
    if args.grammar:
        head = ["run", "round", "grammar", "CPU seconds", *PASSED]
        print(table(head, [[str(cell) for cell in row] for run in args.runs for row in again(run)]))
        return
    passed: defaultdict[tuple[str, ...], Counter[str]] = defaultdict(Counter)
    novelty: defaultdict[tuple[str, ...], list[tuple[Sample, Sample]]] = defaultdict(list)
    accuracy: defaultdict[tuple[str, ...], Counter[str]] = defaultdict(Counter)
    for run in args.runs:
        group = os.path.basename(run.rstrip("/")).partition(",seed=")[0]
        cfg = load_config(join(run, "config.yaml"), [f"run_dir={run}"])
        labels = true_labels(read_samples(join(run, "seed/pool.jsonl")), join(run, "seed/truth.jsonl"))
        for round_ in range(1, cfg.rounds + 1):
            here, name = join(run, f"round-{round_}"), (group, str(round_))
            if not exists(join(here, "expand/expanded.jsonl")):
                print(f"{run}: round {round_} has no expansion and is left out")
                continue
            errors = [ErrorSeed.from_json(row).sample for row in read_jsonl(f"{here}/judge/errors.jsonl")]
            new = list(read_samples(f"{here}/expand/expanded.jsonl"))
            valid = [sample for sample in new if not validate(sample)]
            passed[name] += Counter(dict(zip(PASSED, tiers(f"{here}/expand"), strict=True)))
            by_id = {sample.id: sample for sample in errors}
            novelty[name] += [(by_id[sample.origin.parent], sample) for sample in new]
            missed = [
                sample for sample in errors if sample.origin.verdict == "prediction_wrong" and sample.id in labels
            ]
            known = [sample for sample in missed if is_right(sample, sample.target, labels)]
            grown, next_data = {sample.origin.parent for sample in valid}, join(run, data_file(round_ + 1))
            taken = {sample.id for sample in read_samples(next_data)} if exists(next_data) else set[str]()
            sets = {
                "new": new,
                "new, valid": valid,
                "error seeds": known,
                "in the next set": [sample for sample in known if sample.id in taken],
                "with valid new ones": [sample for sample in known if sample.id in grown],
            }
            for when, folder in (("probed", here), ("next", join(run, f"round-{round_ + 1}"))):
                if exists(path := join(folder, "train/policy")):
                    accuracy[*name, when] += right(cfg, path, sets)
    rows = [[*name, *(str(sums[key]) for key in PASSED)] for name, sums in passed.items()]
    print(table(["runs", "round", *PASSED], rows))
    head = ["runs", "round", "words of its own", "values of its own", "other functions"]
    print(table(head, [[*name, *distances(pairs)] for name, pairs in novelty.items()]))
    rows = [[*name, *(share(sums, key) for key in SETS)] for name, sums in accuracy.items()]
    print(table(["runs", "round", "policy", *SETS], rows))


def tiers(folder: str) -> list[int]:
    """What PASSED names, of an expansion."""
    new = list(read_samples(join(folder, "expanded.jsonl")))
    rejected = [row["tier"] for row in read_jsonl(join(folder, "rejected.jsonl"))]
    counts = [rejected.count(tier) for tier in ("parse", "rules", "judge", "duplicate")]
    return [len(new) + len(rejected), *counts, len(new), sum(not validate(sample) for sample in new)]


def again(run: str) -> list[list[object]]:
    """A line for every round with and without grammar: CPU seconds of all threads, and what PASSED names."""
    cfg, lines = load_config(join(run, "config.yaml"), [f"run_dir={run}"]), []
    with tempfile.TemporaryDirectory() as out:
        pool = ModelPool(cfg.mesh, out)
        generator, judge = pool.lend_chat(cfg.generator_model or cfg.judge_model), pool.lend_chat(cfg.judge_model)
        limit = (pool.lend(cfg.policy), cfg.train.answers.prompt_tokens)
        for round_ in range(1, cfg.rounds + 1):
            seeds = [ErrorSeed.from_json(row) for row in read_jsonl(join(run, f"round-{round_}/judge/errors.jsonl"))]
            for held in (False, True):
                how = replace(cfg.expand, grammar=held)
                for some, folder in (
                    (seeds[: how.chunk], f"{out}/{round_}-{held}-before"),
                    (seeds, f"{out}/{round_}-{held}"),
                ):
                    started = time.process_time()
                    expand(generator, judge, some, limit, cfg.seed, round_, how, folder, Console(quiet=True))
                lines.append([run, round_, held, f"{time.process_time() - started:.1f}", *tiers(folder)])
    return lines


def distances(pairs: Sequence[tuple[Sample, Sample]]) -> list[str]:
    """Of new samples beside their seeds: the share of the request's words and of the calls' values that the seed does
    not have, on average, and how many call other functions."""
    if not pairs:
        return ["–"] * 3
    words = [own(requested(new).split(), requested(seed).split()) for seed, new in pairs]
    values = [own(arguments(new), arguments(seed)) for seed, new in pairs]
    other = sum({c.name for c in new.target.calls} != {c.name for c in seed.target.calls} for seed, new in pairs)
    return [f"{mean(words):.0%}", f"{mean(values):.0%}", f"{other} of {len(pairs)}"]


def own(new: Sequence[str], seed: Sequence[str]) -> float:
    return len(set(new) - set(seed)) / max(1, len(set(new)))


def requested(sample: Sample) -> str:
    return " ".join(message.content for message in sample.messages if message.role == "user").casefold()


def arguments(sample: Sample) -> list[str]:
    return [f"{key}={value!r}" for call in sample.target.calls for key, value in call.arguments.items()]


def right(cfg: RunConfig, path: str, sets: Mapping[str, Sequence[Sample]]) -> Counter[str]:
    """How many samples of each set a policy answers rightly, and how many there are."""
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as out:
        policy = ModelPool(cfg.mesh, out).lend(replace(cfg.policy, path=path))
        for number, (key, samples) in enumerate(sets.items()):
            found = evaluate(policy, samples, cfg.evaluate, f"{out}/{number}", Console(quiet=True))
            counts[f"{key}, all"] += found["items"]
            counts[key] += round(found["accuracy"] * found["items"])
    return counts


def share(counts: Counter[str], key: str) -> str:
    if not (items := counts[f"{key}, all"]):
        return "–"
    low, high = wilson(counts[key] / items, items)
    return f"{counts[key] / items:.0%} of {items} ({100 * low:.0f}–{100 * high:.0f})"


if __name__ == "__main__":
    main()
