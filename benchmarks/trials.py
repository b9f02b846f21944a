"""Keeps what the finished trials of a sweep of the world's runs show, a line a trial, so that their folders can go.

    python benchmarks/trials.py SWEEP --to FILE

FILE gets the trials that it does not name yet: parts of a sweep that ran at other times or on other machines come
together in it. What is kept beyond a run's own metrics: the accuracy of every round's policy on 1,000 new requests for
the functions that it was trained on; which items the last policy answered rightly; in which part of a data set wrong
labels are; tokens and FLOPs. `manifest`: the SHA-256 of the run's manifest, the same wherever the run is repeated on a
machine with the same arithmetic. `evidence.py` makes tables and charts of FILE.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

from looptool_jax.config import load_config
from looptool_jax.data.store import (
    dump_json,
    exists,
    file_sha256,
    join,
    read_bytes,
    read_jsonl,
    read_samples,
    write_bytes,
)
from looptool_jax.evaluation.heldout import evaluate
from looptool_jax.evaluation.repair import is_right, true_labels
from looptool_jax.loop.console import Console
from looptool_jax.loop.ledger import NAME as LEDGER
from looptool_jax.loop.ledger import Ledger
from looptool_jax.loop.manifest import NAME as MANIFEST
from looptool_jax.loop.manifest import Manifest, data_file, eval_folder
from looptool_jax.loop.metrics import kind
from looptool_jax.loop.pool import ModelPool
from looptool_jax.loop.run_config import RunConfig
from looptool_jax.loop.runner import Runner
from looptool_jax.parallel.compilation import keep_compiled_programs
from looptool_jax.report.tables import rounds_of, stage_flops, verdicts
from looptool_jax.sweep.space import kept_sweep
from looptool_jax.toolcall import Sample
from looptool_jax.world import generate

QUIET = Console(quiet=True)
ITEMS, WORLD_SEED = 1000, 777_777  # of requests for training functions: far from runs' seeds, below the warm-up's
COSTLY = ("train", "probe", "judge", "expand")


@dataclass(frozen=True)
class Record:
    """A finished trial. Lists over rounds begin before the first.

    accuracy: by set of items, unseen (the run's held-out functions) and seen (training functions), over rounds. right:
    by set, `1` or `0` for each item and the last round. items: by set, SHA-256 of the items. parts: of the data sets
    D_2, D_3, …, by part, what training on it met. scores: metrics of the score stages. wrong: of the same data sets, by
    part, the wrong labels and all labels of seeds. texts: of the same, by part, targets that are texts, and all. cost:
    by kind of stage, evaluation left out, seconds, tokens, FLOPs.
    """

    trial: str
    group: str
    seed: str
    manifest: str
    items: dict[str, str]
    accuracy: dict[str, list[float]]
    right: dict[str, str]
    parts: list[dict[str, dict[str, float]]]
    scores: list[dict[str, Any]]
    wrong: list[dict[str, tuple[int, int]]]
    texts: list[dict[str, tuple[int, int]]]
    cost: dict[str, dict[str, float]]


def records(path: str) -> list[Record]:
    """The trials that a file holds."""
    return [Record(**row) for row in read_jsonl(path)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweep")
    parser.add_argument("--to", required=True, metavar="FILE")
    args = parser.parse_args()
    keep_compiled_programs()
    unfinished = 0
    with tempfile.TemporaryDirectory() as scratch:
        answers = Answers(scratch)
        for trial in kept_sweep(args.sweep).trials():
            folder = join(args.sweep, "trials", trial.name)
            if is_kept(folder, args.to):
                continue
            if found := record(folder, trial.group, trial.seed, answers):
                keep(found, args.to)
            else:
                unfinished += 1
    print(f"{unfinished} trials are not finished")


class Answers:
    """Which requests for training functions policies answer rightly; asked once of each set of weights."""

    def __init__(self, folder: str) -> None:
        self.folder, self.known = folder, dict[str, str]()
        self.items = generate("train", ITEMS, WORLD_SEED)
        self.last: dict[str, list[int]] = {}  # answers of the policy before: drafts, which change no answer

    def right(self, cfg: RunConfig, path: str, weights: str) -> str:
        """`1` or `0` for each item. weights: what names the policy's weights."""
        if weights not in self.known:
            out, policy = join(self.folder, weights), ModelPool(cfg.mesh, self.folder).lend(cfg.policy, path or None)
            evaluate(policy, self.items, cfg.evaluate, out, QUIET, self.last)
            rows = list(read_jsonl(join(out, "results.jsonl")))
            self.last = {row["id"]: row["ids"] for row in rows}
            self.known[weights] = "".join(str(int(row["correct"])) for row in rows)
        return self.known[weights]


def is_kept(folder: str, file: str) -> bool:
    """Whether the file names the trial in `folder`; stops where it holds another run of that name."""
    name, manifest = os.path.basename(folder), join(folder, MANIFEST)
    kept = [found.manifest for found in records(file) if found.trial == name] if exists(file) else []
    if kept and exists(manifest) and file_sha256(manifest) not in kept:
        raise SystemExit(f"{file} holds another run as {name} than {folder}; give another --to")
    return bool(kept)


def keep(found: Record, file: str) -> None:
    before = read_bytes(file) if exists(file) else b""
    write_bytes(file, before + dump_json(asdict(found)) + b"\n")
    print(f"{found.trial}: kept", flush=True)


def record(folder: str, group: str, seed: str, answers: Answers) -> Record | None:
    """None where the trial in `folder`, which has its name, has not gone through all its rounds."""
    entries = Manifest(folder).stages
    if "eval-0" not in entries:
        return None
    cfg = load_config(join(folder, "config.yaml"), [f"run_dir={folder}"])
    if f"round-{cfg.rounds}/eval" not in entries:
        return None
    rounds, runner = range(cfg.rounds + 1), Runner(cfg, QUIET)
    seen = []
    for round_ in rounds:
        if trained := runner.policy_dir(round_):
            stage = entries[trained.rpartition("/")[0]]
            weights = stage["outputs"][f"{trained}/model.safetensors"]
            seen.append(answers.right(cfg, join(folder, trained), weights))
        else:
            seen.append(answers.right(cfg, "", sha256(cfg.policy.place.encode()).hexdigest()))
    unseen = list(verdicts(folder, cfg.rounds).values())
    stages = {name: entry["metrics"] for name, entry in entries.items()}
    return Record(
        trial=os.path.basename(folder),
        group=group,
        seed=str(seed),
        manifest=file_sha256(join(folder, MANIFEST)),
        items={"unseen": entries["eval-0"]["inputs"]["seed/heldout.jsonl"], "seen": hash_of(answers.items)},
        accuracy={
            "unseen": [stages[eval_folder(round_)]["accuracy"] for round_ in rounds],
            "seen": [right.count("1") / len(right) for right in seen],
        },
        right={"unseen": "".join(str(int(right)) for right in unseen), "seen": seen[-1]},
        parts=[metrics["parts"] for round_, metrics in rounds_of(stages, "train") if round_ > 1],
        scores=[metrics for _, metrics in rounds_of(stages, "score")],
        wrong=[wrong_labels(folder, round_) for round_ in rounds[2:]],
        texts=[texts(folder, round_) for round_ in rounds[2:]],
        cost=cost(folder),
    )


def hash_of(samples: Sequence[Sample]) -> str:
    """Of the file that holds them."""
    return sha256(b"".join(dump_json(sample.to_json()) + b"\n" for sample in samples)).hexdigest()


def wrong_labels(folder: str, round_: int) -> dict[str, tuple[int, int]]:
    """Of the seeds in D_j and their copies, by the part that took them: wrong labels, and all."""
    labels = true_labels(read_samples(join(folder, "seed/pool.jsonl")), join(folder, "seed/truth.jsonl"))
    known = []
    for sample in read_samples(join(folder, data_file(round_))):
        id_ = sample.origin.parent if sample.origin.kind == "repeated" else sample.id
        if id_ in labels:
            known.append(replace(sample, id=id_))
    seeds = Counter(sample.origin.kind for sample in known)
    wrong = Counter(s.origin.kind for s in known if not is_right(s, s.target, labels))
    return {part: (wrong[part], count) for part, count in seeds.items()}


def texts(folder: str, round_: int) -> dict[str, tuple[int, int]]:
    """Of D_j, by part: targets that are texts, and all."""
    samples = list(read_samples(join(folder, data_file(round_))))
    parts = Counter(sample.origin.kind for sample in samples)
    found = Counter(sample.origin.kind for sample in samples if not sample.target.is_call)
    return {part: (found[part], count) for part, count in parts.items()}


def cost(folder: str) -> dict[str, dict[str, float]]:
    costs = Ledger(join(folder, LEDGER)).costs()
    flops: Mapping[str, float | None] = stage_flops(folder, costs)
    found = {name: {"seconds": 0.0, "tokens": 0.0, "flops": 0.0} for name in COSTLY}
    for stage, each in costs.items():
        if (name := kind(stage)) in found:
            tokens = each.tokens + each.prompt_tokens
            if tokens and flops[stage] is None:
                raise SystemExit(f"{folder}: the FLOPs of {stage} are not known, as its model is behind a server")
            found[name]["seconds"] += each.seconds
            found[name]["tokens"] += tokens
            found[name]["flops"] += flops[stage] or 0.0
    return found


if __name__ == "__main__":
    main()
