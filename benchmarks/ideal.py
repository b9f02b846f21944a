"""What the loop gains where its judge or generator makes no mistake: the most that better ones could bring.

    python benchmarks/ideal.py SWEEP --out FOLDER --ideal judge generator --to FILE

Of every trial of the sweep's variant `full` that has judged its first round (runs on the world): the same run again,
with the hidden truth in the place of the judge or of the generator or both. The judge then replaces a label if it is
wrong and the answer right, discards the sample if neither is right, and keeps the label otherwise. The generator writes
expand.per_error new requests of the world for the functions that an error seed's label calls, in its category, with
exact labels; never a held-out function. Training on D_1 and the probe are taken over from the trial. Runs that have
ended are kept in FILE, beside those of the sweep (trials.py), as the variant `ideal`, `ideal-judge` or
`ideal-generator`; rerun to resume.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import islice
from typing import Any, get_args

os.environ.setdefault("JAX_PLATFORMS", "cpu")

from trials import QUIET, Answers, is_kept, keep, record

from looptool_jax.config import keep_config, load_config
from looptool_jax.data.store import exists, join, read_samples, write_jsonl, write_samples
from looptool_jax.evaluation.repair import is_right, true_labels
from looptool_jax.loop import compose as composition
from looptool_jax.loop.judge import Judgement, Verdict, error_seed, target_of
from looptool_jax.loop.keys import random_for
from looptool_jax.loop.manifest import NAME as MANIFEST
from looptool_jax.loop.manifest import Manifest
from looptool_jax.loop.probe import Probe
from looptool_jax.loop.runner import Runner
from looptool_jax.parallel.compilation import keep_compiled_programs
from looptool_jax.sweep.common import take_over
from looptool_jax.sweep.space import kept_sweep
from looptool_jax.toolcall import Origin, Sample
from looptool_jax.world import generate, recognise

ROLES = ("judge", "generator")
REQUESTS, WORLD_SEED = 20_000, 555_555  # new requests to choose from: not the runs', the warm-up's or the evaluation's
Wanted = tuple[str, frozenset[str]]  # a category and the functions that are called


class IdealRunner(Runner):
    """A run whose judge or generator, or both, are the truth."""

    roles: Sequence[str] = ROLES

    @cached_property
    def requests(self) -> dict[Wanted, list[Sample]]:
        found: defaultdict[Wanted, list[Sample]] = defaultdict(list)
        for sample in generate("train", REQUESTS, WORLD_SEED):
            found[wanted(sample)].append(sample)
        return found

    def _judge(self, round_: int) -> dict[str, Any]:
        if "judge" not in self.roles:
            return super()._judge(round_)
        labels = true_labels(read_samples(self.path("seed/pool.jsonl")), self.path("seed/truth.jsonl"))
        samples = {sample.id: sample for sample in self._samples(round_)}
        labels |= {id_: sample.target for id_, sample in samples.items() if id_ not in labels}
        rows = [verdict(samples[row.id], row, labels) for row in self._probes(round_) if not row.correct]
        errors = [seed for row in rows if (seed := error_seed(samples[row.id], row, round_))]
        folder = self.path(f"round-{round_}/judge")
        write_jsonl(join(folder, "judgements.jsonl"), [row.to_json() for row in rows])
        write_jsonl(join(folder, "errors.jsonl"), [seed.to_json() for seed in errors])
        write_jsonl(join(folder, "set_aside.jsonl"), [])
        counts = Counter(row.verdict for row in rows)
        said = {name: counts[name] for name in get_args(Verdict)}
        return {"mismatches": len(rows), **said, "judged": len(rows), "agreement": 1.0, "error_seeds": len(errors)}

    def _expand(self, round_: int) -> dict[str, Any]:
        if "generator" not in self.roles:
            return super()._expand(round_)
        cfg = self.cfg
        errors = [item.sample for item in self._errors(round_)]
        rates = self._pass_rates(round_)
        seeds = composition.seeds_to_expand(errors, rates, cfg.data.round_size, cfg.seed, round_, cfg.compose)
        streams = {wanted(seed): self._fitting(wanted(seed), round_) for seed in seeds}
        new = [
            replace(request, id=f"{seed.id}.r{round_}e{number}", origin=Origin("expanded", round_ + 1, parent=seed.id))
            for seed in seeds
            for number, request in enumerate(islice(streams[wanted(seed)], cfg.expand.per_error))
        ]
        folder = self.path(f"round-{round_}/expand")
        write_samples(join(folder, "expanded.jsonl"), new)
        write_jsonl(join(folder, "rejected.jsonl"), [])
        rejected = {f"rejected_{tier}": 0 for tier in ("parse", "rules", "judge", "duplicate")}
        return {"seeds": len(seeds), "generated": len(new), "accepted": len(new), "acceptance": 1.0, **rejected}

    def _fitting(self, key: Wanted, round_: int) -> Iterator[Sample]:
        """Requests with prompts that the policy takes, each once, in an order of the round's own."""
        found = self.requests.get(key, [])
        policy, limit = self.policy_tokens(), self.cfg.train.answers.prompt_tokens
        order = random_for(self.cfg.seed, round_, "ideal", key[0], *sorted(key[1]))
        return (sample for sample in order.sample(found, len(found)) if policy.prompt_length(sample) <= limit)


def wanted(sample: Sample) -> Wanted:
    tools = {tool.name: tool for tool in sample.tools}
    called = {call.name for call in sample.target.calls} & tools.keys()  # a wrong label may call what is not there
    return sample.category or "", frozenset(recognise(tools[name]).leaf.key for name in called)


def verdict(sample: Sample, row: Probe, labels: dict[str, Any]) -> Judgement:
    """By the truth, of an answer that differs from the label."""
    answer = target_of(row.answer)
    if is_right(sample, sample.target, labels):
        found = "prediction_wrong"
    elif answer and row.finish != "length" and is_right(sample, answer, labels):
        found = "label_wrong"
    else:
        found = "both_wrong"
    return Judgement(sample.id, found, "judge", [], row.answer, "")  # type: ignore[arg-type]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweep")
    parser.add_argument("--out", required=True)
    parser.add_argument("--ideal", nargs="+", choices=ROLES, required=True)
    parser.add_argument("--to", required=True, metavar="FILE")
    args = parser.parse_args()
    keep_compiled_programs()
    IdealRunner.roles = args.ideal
    group = "ideal" if set(args.ideal) == set(ROLES) else f"ideal-{args.ideal[0]}"
    with tempfile.TemporaryDirectory() as scratch:
        answers = Answers(scratch)
        for trial in kept_sweep(args.sweep).trials():
            source, folder = join(args.sweep, "trials", trial.name), join(args.out, f"{group},seed={trial.seed}")
            if trial.group != "full" or not Manifest(source).done("round-1/judge") or is_kept(folder, args.to):
                continue
            cfg = load_config(join(source, "config.yaml"), [f"run_dir={folder}"])
            plan = [stage.name for stage in IdealRunner(cfg, QUIET).stages()]
            if not exists(join(folder, MANIFEST)):
                keep_config(cfg)
                take_over(source, folder, plan[: plan.index("round-1/judge")])
            IdealRunner(cfg, QUIET).run()
            if found := record(folder, group, trial.seed, answers):
                keep(found, args.to)


if __name__ == "__main__":
    main()
