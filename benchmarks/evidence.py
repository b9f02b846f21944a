"""What the finished trials of a sweep of the world's runs show beyond `looptool compare`.

    python benchmarks/evidence.py SWEEP --out FOLDER

SWEEP: the folder of a sweep with variants and seeds, such as `looptool sweep ablations` makes. Printed:

- the accuracy of every round's policy on 1,000 new requests for the functions that it was trained on, beside that on
  the run's own held-out functions, and the difference to the first variant over paired seeds: means over seeds with
  95 % t-intervals; p of the paired t-test, as it is and corrected for the number of variants (Holm), and of all signs;
- what the parts of the data sets taught: right answers of the rollouts and groups without signal, of all seeds
  together;
- wrong labels among the seeds of every data set, and what label repair did: means over seeds with 95 % t-intervals;
  and in which part of D_2, D_3, … they are, of all seeds together;
- seconds, tokens and FLOPs by stage, and for each point of accuracy gained: means over seeds.

FOLDER gets the answers (what is there is not answered again), the tables (evidence.md) and the charts (SVG).
"""

from __future__ import annotations

import argparse
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from itertools import count
from pathlib import Path
from statistics import fmean
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
from peers.alternate import table

from looptool_jax.config import load_config
from looptool_jax.data.store import join, read_samples, write_text
from looptool_jax.evaluation.heldout import evaluate
from looptool_jax.evaluation.repair import is_right, true_labels
from looptool_jax.evaluation.statistics import Estimate, holm, mean_over_seeds, sign_flips
from looptool_jax.loop.console import Console
from looptool_jax.loop.ledger import NAME as LEDGER
from looptool_jax.loop.ledger import Cost, Ledger
from looptool_jax.loop.manifest import Manifest, data_file, eval_folder
from looptool_jax.loop.metrics import kind
from looptool_jax.loop.pool import ModelPool
from looptool_jax.loop.runner import Runner
from looptool_jax.report.tables import rounds_of, stage_flops
from looptool_jax.sweep.space import kept_sweep
from looptool_jax.sweep.summary import shown_interval
from looptool_jax.world import generate

QUIET = Console(quiet=True)
ITEMS, WORLD_SEED = (
    1000,
    777_777,
)  # of the requests for training functions: far from the seeds of runs, below the warm-up's
SETS = {"unseen": "unseen functions", "seen": "training functions"}
PARTS = ("error", "expanded", "repeated", "high_ppl", "mastered", "seed_new", "seed")


@dataclass
class Run:
    """A finished trial: metrics of its stages, and accuracy after each round (0: before) on both sets of items."""

    folder: str
    group: str
    seed: str
    stages: dict[str, Any]
    accuracy: dict[str, list[float]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweep")
    parser.add_argument("--out", required=True)
    args = parser.parse_args()
    runs = list(finished(args.sweep, args.out))
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.group, []).append(run)
    sections = [
        *(section(f"Accuracy on {name}", accuracies(groups, key)) for key, name in SETS.items()),
        section("What the parts of the data sets taught", taught(groups)),
        section("Wrong labels and their repair", repair(groups)),
        section("Where wrong labels are", wrong_labels(groups)),
        section("Cost", cost(groups)),
    ]
    text = "\n\n".join(sections) + "\n"
    print(text)
    write_text(join(args.out, "evidence.md"), text)
    for key, name in SETS.items():
        chart(groups, key, name, Path(args.out) / f"accuracy-{key}.svg")


def section(title: str, rows: Iterable[Sequence[str]]) -> str:
    head, *body = rows
    return f"### {title}\n\n{table(list(head), [list(row) for row in body])}"


def finished(sweep: str, out: str) -> Iterator[Run]:
    """The trials that have gone through all their rounds, with what is answered here: once by each set of weights."""
    items, known = generate("train", ITEMS, WORLD_SEED), dict[str, float]()
    for trial in kept_sweep(sweep).trials():
        folder = join(sweep, "trials", trial.name)
        entries = Manifest(folder).stages
        cfg = load_config(join(folder, "config.yaml"), [f"run_dir={folder}"]) if entries else None
        if cfg is None or f"round-{cfg.rounds}/eval" not in entries:
            print(f"{trial.name}: not finished, left out")
            continue
        seen = []
        runner = Runner(cfg, QUIET)
        for round_ in range(cfg.rounds + 1):
            weights, path = sha256(str(cfg.policy.path).encode()).hexdigest(), cfg.policy.path
            if trained := runner.policy_dir(round_):
                path, stage = join(folder, trained), trained.rpartition("/")[0]
                weights = entries[stage]["outputs"][f"{trained}/model.safetensors"]
            if weights not in known:
                where = join(out, "answers", weights[:16])
                policy = ModelPool(cfg.mesh, out).lend(replace(cfg.policy, path=path))
                known[weights] = evaluate(policy, items, cfg.evaluate, where, QUIET)["accuracy"]
            seen.append(known[weights])
        stages = {name: entry["metrics"] for name, entry in entries.items()}
        unseen = [stages[eval_folder(round_)]["accuracy"] for round_ in range(cfg.rounds + 1)]
        yield Run(folder, trial.group, trial.seed, stages, {"unseen": unseen, "seen": seen})


def accuracies(groups: dict[str, list[Run]], key: str) -> Iterator[list[str]]:
    """A line a group: accuracy round by round, the gain, and how much more than the first group's it is."""
    first = next(iter(groups.values()))
    rounds = range(len(first[0].accuracy[key]))
    yield [
        "variant", "n", "before", *(f"round {r}" for r in rounds[1:]), "gain", f"beyond {first[0].group}", "pairs", "p",
        "p (Holm)", "p (signs)",
    ]  # fmt: skip
    gains = {
        group: {run.seed: run.accuracy[key][-1] - run.accuracy[key][0] for run in runs}
        for group, runs in groups.items()
    }
    reference = gains[first[0].group]
    beyond = {
        group: [own[seed] - reference[seed] for seed in own if seed in reference]
        for group, own in gains.items()
        if own is not reference
    }
    found = {group: mean_over_seeds(more) for group, more in beyond.items() if more}
    corrected = dict(zip(found, holm([more.p for more in found.values()]), strict=True))
    for group, runs in groups.items():
        values = [mean_over_seeds([run.accuracy[key][r] for run in runs]) for r in rounds]
        against = ["–"] * 5
        if more := found.get(group):
            signs = sign_flips(beyond[group])
            against = [points(more), str(more.n), *(p_value(p) for p in (more.p, corrected[group], signs))]
        yield [
            group, str(len(runs)), *(shown(value) for value in values),
            points(mean_over_seeds(list(gains[group].values()))), *against,
        ]  # fmt: skip


def taught(groups: dict[str, list[Run]]) -> Iterator[list[str]]:
    """A line for every part of the data sets D_2, D_3, … of a group."""
    yield ["variant", "part", "groups", "right answers", "no signal"]
    for group, runs in groups.items():
        for part in PARTS:
            found = [
                metrics["parts"][part]
                for run in runs
                for round_, metrics in rounds_of(run.stages, "train")
                if round_ > 1 and part in metrics["parts"]
            ]
            if found:
                prompts = sum(each["groups"] for each in found)
                right, none = (
                    sum(each[what] * each["groups"] for each in found) / prompts
                    for what in ("pass_rate", "zero_variance")
                )
                yield [group, part, str(prompts), f"{right:.1%}", f"{none:.1%}"]


def repair(groups: dict[str, list[Run]]) -> Iterator[list[str]]:
    """A line for every round of a group that was scored."""
    yield ["variant", "round", "wrong labels before", "after", "replaced", "precision", "recall", "harm", "valid new"]
    for group, runs in groups.items():
        for round_ in count(1):
            scores = [run.stages[name] for run in runs if (name := f"round-{round_}/score") in run.stages]
            if not scores:
                break

            def mean(of: Callable[[dict[str, Any]], float | None], scores: list[dict[str, Any]] = scores) -> str:
                values = [value for score in scores if (value := of(score)) is not None]
                return shown(mean_over_seeds(values)) if values else "–"

            yield [
                group, str(round_),
                *(mean(lambda s, key=f"noise_{when}": s[key]["share"]) for when in ("before", "after")),
                f"{fmean(s['label_repair']['replaced'] for s in scores):.1f}",
                *(mean(lambda s, key=key: s["label_repair"][key]) for key in ("precision", "recall", "harm")),
                mean(lambda s: s.get("expansion", {}).get("valid")),
            ]  # fmt: skip


def wrong_labels(groups: dict[str, list[Run]]) -> Iterator[list[str]]:
    """A line for every data set of a group behind D_1: wrong labels among its seeds, by part."""
    yield ["variant", "set", *PARTS]
    for group, runs in groups.items():
        for round_ in range(2, len(runs[0].accuracy["seen"])):
            seeds: Counter[str] = Counter()
            wrong: Counter[str] = Counter()
            for run in runs:
                truth = join(run.folder, "seed/truth.jsonl")
                labels = true_labels(read_samples(join(run.folder, "seed/pool.jsonl")), truth)
                known = [s for s in read_samples(join(run.folder, data_file(round_))) if s.id in labels]
                seeds.update(sample.origin.kind for sample in known)
                wrong.update(s.origin.kind for s in known if not is_right(s, s.target, labels))
            yield [group, f"D_{round_}", *(f"{wrong[part]} of {seeds[part]}" if seeds[part] else "–" for part in PARTS)]


def cost(groups: dict[str, list[Run]]) -> Iterator[list[str]]:
    """A line a group: what a run costs on average, evaluation apart, and each point that it gains on both sets."""
    stages = ("train", "probe", "judge", "expand")
    yield [
        "variant",
        *(f"{stage} s" for stage in stages),
        "all s",
        "tokens",
        "FLOPs",
        *(f"FLOPs a point, {k}" for k in SETS),
    ]
    for group, runs in groups.items():
        seconds, tokens, flops = dict.fromkeys(stages, 0.0), 0, 0.0
        for run in runs:
            costs: dict[str, Cost] = Ledger(join(run.folder, LEDGER)).costs()
            counted = stage_flops(run.folder, costs)
            for stage, each in costs.items():
                if kind(stage) in stages:
                    seconds[kind(stage)] += each.seconds / len(runs)
                    tokens += (each.tokens + each.prompt_tokens) // len(runs)
                    flops += (counted[stage] or 0.0) / len(runs)
        gains = [100 * fmean(run.accuracy[key][-1] - run.accuracy[key][0] for run in runs) for key in SETS]
        yield [
            group, *(f"{value:.0f}" for value in seconds.values()), f"{sum(seconds.values()):.0f}", f"{tokens:,}",
            f"{flops:.2e}", *(f"{flops / gain:.1e}" if gain > 0 else "–" for gain in gains),
        ]  # fmt: skip


def chart(groups: dict[str, list[Run]], key: str, name: str, path: Path) -> None:
    """Accuracy round by round: means over seeds with 95 % t-intervals."""
    plt.rcParams.update({"svg.hashsalt": "looptool", "svg.fonttype": "none", "font.size": 10})
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for place, (group, runs) in enumerate(groups.items()):
        values = [mean_over_seeds([run.accuracy[key][r] for run in runs]) for r in range(len(runs[0].accuracy[key]))]
        at = [r + 0.04 * (place - len(groups) / 2) for r in range(len(values))]
        spread = [100 * (value.high - value.mean) if value.high is not None else 0.0 for value in values]
        axes.errorbar(at, [100 * value.mean for value in values], spread, marker="o", capsize=2, label=group, lw=1.2)
    axes.set_xticks(range(len(values)), ["before", *(f"round {r}" for r in range(1, len(values)))])
    axes.set_ylabel("accuracy, %")
    axes.set_title(f"{name[0].upper()}{name[1:]}, {len(next(iter(groups.values())))} seeds", loc="left")
    axes.grid(axis="y", lw=0.4)
    axes.legend(frameon=False, fontsize=8, ncols=2)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def shown(value: Estimate) -> str:
    spread = f" ±{100 * (value.high - value.mean):.1f}" if value.high is not None else ""
    return f"{100 * value.mean:.1f}{spread}"


def points(value: Estimate) -> str:
    return f"{100 * value.mean:+.1f} ({shown_interval(value, sign=True)})"


def p_value(p: float | None) -> str:
    """– where there is no spread to judge by: one pair, or differences that are all alike."""
    return "–" if p is None else f"{p:.3f}"


if __name__ == "__main__":
    main()
