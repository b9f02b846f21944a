"""Tables and charts of the trials that `trials.py` has kept.

    python benchmarks/evidence.py FILE --out FOLDER

FILE: the trials of a sweep with variants and seeds, such as `looptool sweep ablations` runs. Printed, and written to
FOLDER (evidence.md, charts as SVG, and the items as samples for `looptool eval` of other models):

- the accuracy of every round's policy on the run's held-out functions, and on 1,000 new requests for the functions that
  it was trained on: means over seeds with 95 % t-intervals;
- the difference of the last policies to the first variant's, over paired seeds: 95 % t-interval, p of the paired
  t-test, as it is and corrected for the number of variants (Holm), p of all signs; the 95 % interval of a bootstrap of
  seeds and items together, where both could have been others; and the smallest true difference that as many seeds with
  this spread would find significant four times of five;
- the last policies' accuracy on items that want calls and on those that want a text, its mean over categories, and by
  category: means over seeds; and how many items none of them or all of them answer rightly;
- what the parts of the data sets taught: right answers of the rollouts and groups without signal, of all seeds
  together;
- wrong labels among the seeds of every data set, and what label repair did: means over seeds with 95 % t-intervals,
  labels of all seeds together;
  and in which part of D_2, D_3, … they are, and targets that are texts, of all seeds together;
- seconds, tokens and FLOPs by stage, and for each point of accuracy gained: means over seeds.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure
from peers.alternate import table
from trials import COSTLY, ITEMS, WORLD_SEED, Record, hash_of, records

from looptool_jax.data.store import join, write_samples, write_text
from looptool_jax.evaluation.statistics import DRAWS, Estimate, holm, mean_over_seeds, sign_flips, t_quantile
from looptool_jax.sweep.summary import shown_interval
from looptool_jax.toolcall import Sample
from looptool_jax.world import CATEGORIES, generate

SETS = {"unseen": "unseen functions", "seen": "training functions"}
PARTS = ("error", "expanded", "repeated", "high_ppl", "mastered", "seed_new", "seed")
HELDOUT = 1000  # items of a run
Groups = dict[str, list[Record]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file")
    parser.add_argument("--out", required=True)
    args = parser.parse_args()
    groups: Groups = {}
    for record in sorted(records(args.file), key=lambda record: int(record.seed)):
        groups.setdefault(record.group, []).append(record)
    sections = [
        *(section(f"Accuracy on {name}", accuracies(groups, key)) for key, name in SETS.items()),
        *(section(f"Beside {next(iter(groups))}, {name}", beside(groups, key)) for key, name in SETS.items()),
        *(section(f"By category, {name}", by_category(groups, key)) for key, name in SETS.items()),
        section("Items that are decided", open_items(groups)),
        section("What the parts of the data sets taught", taught(groups)),
        section("Wrong labels and their repair", repair(groups)),
        section("Where wrong labels are", by_part(groups, "wrong")),
        section("Where targets are texts", by_part(groups, "texts")),
        section("Cost", cost(groups)),
    ]
    text = "\n\n".join(sections) + "\n"
    print(text)
    write_text(join(args.out, "evidence.md"), text)
    for key in SETS:
        write_samples(join(args.out, f"items-{key}.jsonl"), items_of(groups, key))
    plt.rcParams.update({"svg.hashsalt": "looptool", "svg.fonttype": "none", "font.size": 10})
    for key, name in SETS.items():
        over_rounds(groups, key, name, Path(args.out) / f"accuracy-{key}.svg")
    differences(groups, Path(args.out) / "differences.svg")


def section(title: str, rows: Iterable[Sequence[str]]) -> str:
    head, *body = rows
    return f"### {title}\n\n{table(list(head), [list(row) for row in body])}"


def accuracies(groups: Groups, key: str) -> Iterator[list[str]]:
    """A line a group: accuracy round by round, and the gain."""
    rounds = range(len(next(iter(groups.values()))[0].accuracy[key]))
    yield ["variant", "n", "before", *(f"round {r}" for r in rounds[1:]), "gain"]
    for group, runs in groups.items():
        values = [mean_over_seeds([run.accuracy[key][r] for run in runs]) for r in rounds]
        gain = mean_over_seeds([run.accuracy[key][-1] - run.accuracy[key][0] for run in runs])
        yield [group, str(len(runs)), *(shown(value) for value in values), points(gain)]


def beside(groups: Groups, key: str) -> Iterator[list[str]]:
    """A line a group: how its last policies differ from the first group's."""
    yield ["variant", "pairs", "over seeds", "p", "p (Holm)", "p (signs)", "over seeds and items", "detectable"]
    found = paired(groups, key)
    corrected = holm([over_seeds.p for _, over_seeds in found.values()])
    for (group, (pairs, over_seeds)), p in zip(found.items(), corrected, strict=True):
        changes = np.array([right(run, key) - right(other, key) for run, other in pairs])
        yield [
            group, str(len(pairs)), points(over_seeds), p_value(over_seeds.p), p_value(p),
            p_value(sign_flips(changes.mean(1))), shown_interval(crossed_bootstrap(changes), sign=True),
            f"{100 * detectable(over_seeds):.1f}" if over_seeds.sd else "–",
        ]  # fmt: skip


def crossed_bootstrap(changes: Float[np.ndarray, "seeds items"]) -> Estimate:
    """The mean with the percentile interval of resamples of seeds and of items, each drawn by itself (the pigeonhole
    bootstrap; Owen, 2007), which is wider rather than too narrow."""
    generator = np.random.default_rng(0)
    seeds, items = changes.shape
    by_seed = generator.multinomial(seeds, np.full(seeds, 1 / seeds), DRAWS) / seeds
    by_item = generator.multinomial(items, np.full(items, 1 / items), DRAWS) / items
    low, high = np.quantile(((by_seed @ changes) * by_item).sum(1), (0.025, 0.975))
    return Estimate(changes.size, float(changes.mean()), None, float(low), float(high))


def detectable(differences: Estimate) -> float:
    """About the true difference that a paired t-test at 5 % finds with a power of 80 % (5 % too low for three
    pairs)."""
    assert differences.sd is not None
    freedom = differences.n - 1
    return (t_quantile(0.975, freedom) + t_quantile(0.8, freedom)) * differences.sd / differences.n**0.5


def by_category(groups: Groups, key: str) -> Iterator[list[str]]:
    """A line a group, of its last policies."""
    items = items_of(groups, key)
    wants = {"calls": [item.target.is_call for item in items], "texts": [not item.target.is_call for item in items]}
    kinds = {name: [item.category == name for item in items] for name in sorted(CATEGORIES)}
    yield ["variant", "all", *wants, "mean of categories", *kinds]
    for group, runs in groups.items():
        marks = np.mean([right(run, key) for run in runs], axis=0)
        wanted, kind = ([float(marks[which].mean()) for which in names.values()] for names in (wants, kinds))
        yield [group, *(f"{100 * value:.1f}" for value in (marks.mean(), *wanted, fmean(kind), *kind))]


def open_items(groups: Groups) -> Iterator[list[str]]:
    """A line a set: how many items all last policies of all groups answer rightly, none, or some."""
    yield ["items", "policies", "right in all", "in some", "in none"]
    for key, name in SETS.items():
        share = np.mean([right(run, key) for runs in groups.values() for run in runs], axis=0)
        found = (share == 1, (share > 0) & (share < 1), share == 0)
        yield [name, str(sum(map(len, groups.values()))), *(f"{which.mean():.1%}" for which in found)]


def items_of(groups: Groups, key: str) -> list[Sample]:
    """The items that the trials were asked, made again."""
    items = generate("heldout", HELDOUT, 0) if key == "unseen" else generate("train", ITEMS, WORLD_SEED)
    if {run.items[key] for runs in groups.values() for run in runs} != {hash_of(items)}:
        raise SystemExit(
            f"these trials were asked other {SETS[key]} than this version of the world makes {len(items)} of"
        )
    return items


def paired(groups: Groups, key: str) -> dict[str, tuple[list[tuple[Record, Record]], Estimate]]:
    """By group, behind the first: its trials and the first group's, of the same seed, and the mean difference."""
    reference = {run.seed: run for run in next(iter(groups.values()))}
    found = {}
    for group, runs in list(groups.items())[1:]:
        if strangers := {run.seed for run in runs} - reference.keys():
            print(f"{group}: seeds {', '.join(sorted(strangers))} have no counterpart and are left out of differences")
        if pairs := [(run, reference[run.seed]) for run in runs if run.seed in reference]:
            more = [run.accuracy[key][-1] - other.accuracy[key][-1] for run, other in pairs]
            found[group] = pairs, mean_over_seeds(more)
    return found


def right(run: Record, key: str) -> np.ndarray:
    return np.array([float(mark) for mark in run.right[key]])


def taught(groups: Groups) -> Iterator[list[str]]:
    """A line for every part of the data sets D_2, D_3, … of a group."""
    yield ["variant", "part", "groups", "right answers", "no signal"]
    for group, runs in groups.items():
        for part in PARTS:
            if found := [parts[part] for run in runs for parts in run.parts if part in parts]:
                prompts = sum(each["groups"] for each in found)
                right, none = (
                    sum(each[what] * each["groups"] for each in found) / prompts
                    for what in ("pass_rate", "zero_variance")
                )
                yield [group, part, f"{prompts:.0f}", f"{right:.1%}", f"{none:.1%}"]


def repair(groups: Groups) -> Iterator[list[str]]:
    """A line for every round of a group that was scored."""
    yield [
        "variant", "round", "wrong labels before", "after", "replaced", "mended", "broken", "precision", "recall",
        "harm", "valid new",
    ]  # fmt: skip
    for group, runs in groups.items():
        for round_, scores in enumerate(zip(*(run.scores for run in runs), strict=True), 1):

            def mean(of: Callable[[dict[str, Any]], float | None], scores: Sequence[dict[str, Any]] = scores) -> str:
                values = [value for score in scores if (value := of(score)) is not None]
                missing = "" if len(values) == len(scores) else f", n {len(values)}"
                return shown(mean_over_seeds(values)) + missing if values else "–"

            yield [
                group, str(round_),
                *(mean(lambda s, key=f"noise_{when}": s[key]["share"]) for when in ("before", "after")),
                *(str(sum(each)) for each in zip(*(replaced(s["label_repair"]) for s in scores), strict=True)),
                *(mean(lambda s, key=key: s["label_repair"][key]) for key in ("precision", "recall", "harm")),
                mean(lambda s: s.get("expansion", {}).get("valid")),
            ]  # fmt: skip


def replaced(repair: dict[str, Any]) -> tuple[int, int, int]:
    """How many labels were replaced, wrong ones by right ones, and right ones by wrong ones."""
    wrong = repair["wrong_labels"]
    return (
        repair["replaced"],
        round((repair["repaired"] or 0) * wrong),
        round((repair["harm"] or 0) * (repair["seeds"] - wrong)),
    )


def by_part(groups: Groups, what: str) -> Iterator[list[str]]:
    """A line for every data set of a group behind D_1: how many of its targets are such, by part and in all."""
    yield ["variant", "set", *PARTS, "all"]
    for group, runs in groups.items():
        for number, sets in enumerate(zip(*(getattr(run, what) for run in runs), strict=True), 2):
            some, count = (Counter[str](), Counter[str]())
            for parts in sets:
                for part, (found, all_) in parts.items():
                    some.update({part: found, "all": found})
                    count.update({part: all_, "all": all_})
            columns = (f"{some[part]} of {count[part]}" if count[part] else "–" for part in (*PARTS, "all"))
            yield [group, f"D_{number}", *columns]


def cost(groups: Groups) -> Iterator[list[str]]:
    """A line a group: what a run costs on average, evaluation apart, and each point that it gains on both sets."""
    yield [
        "variant",
        *(f"{name} s" for name in COSTLY),
        "all s",
        "tokens",
        "FLOPs",
        *(f"FLOPs a point, {k}" for k in SETS),
    ]
    for group, runs in groups.items():
        seconds = [fmean(run.cost[name]["seconds"] for run in runs) for name in COSTLY]
        tokens, flops = (
            fmean(sum(run.cost[name][what] for name in COSTLY) for run in runs) for what in ("tokens", "flops")
        )
        gains = [100 * fmean(run.accuracy[key][-1] - run.accuracy[key][0] for run in runs) for key in SETS]
        yield [
            group, *(f"{value:.0f}" for value in seconds), f"{sum(seconds):.0f}", f"{tokens:,.0f}", f"{flops:.2e}",
            *(f"{flops / gain:.1e}" if gain > 0 else "–" for gain in gains),
        ]  # fmt: skip


def over_rounds(groups: Groups, key: str, name: str, path: Path) -> None:
    """The first two groups' accuracy round by round: means over seeds with 95 % t-intervals."""
    figure, axes = plt.subplots(figsize=(6, 3.5), layout="constrained")
    for place, (group, runs) in enumerate(list(groups.items())[:2]):
        values = [mean_over_seeds([run.accuracy[key][r] for run in runs]) for r in range(len(runs[0].accuracy[key]))]
        at = [r + 0.04 * place for r in range(len(values))]
        label = f"{group}, {len(runs)} seeds"
        axes.errorbar(at, *zip(*map(spread, values), strict=True), marker="o", capsize=2, label=label, lw=1.2)
    axes.set_xticks(range(len(values)), ["before", *(f"round {r}" for r in range(1, len(values)))])
    axes.set_ylabel("accuracy, %")
    axes.set_title(name[0].upper() + name[1:], loc="left")
    axes.grid(axis="y", lw=0.4)
    axes.legend(frameon=False, fontsize=9)
    saved(figure, path)


def differences(groups: Groups, path: Path) -> None:
    """Every group's accuracy after the last round less the first's: means over paired seeds with 95 % t-intervals."""
    first = next(iter(groups))
    figure, panels = plt.subplots(1, 2, figsize=(9, 0.8 + 0.32 * len(groups)), sharey=True, layout="constrained")
    for axes, (key, name) in zip(panels, SETS.items(), strict=True):
        found = {group: estimate for group, (_, estimate) in paired(groups, key).items()}
        middle, half = zip(*map(spread, found.values()), strict=True)
        axes.errorbar(middle, range(len(found)), xerr=half, fmt="o", capsize=2)
        axes.axvline(0, color="black", lw=0.8)
        axes.set_yticks(range(len(found)), list(found))
        axes.set_xlabel(f"points beyond {first}")
        axes.set_title(name[0].upper() + name[1:], loc="left")
        axes.grid(axis="x", lw=0.4)
    panels[0].invert_yaxis()
    saved(figure, path)


def spread(value: Estimate) -> tuple[float, float]:
    """In per cent, the mean and half of its interval, 0 where there is none."""
    return 100 * value.mean, 100 * (value.high - value.mean) if value.high is not None else 0.0


def saved(figure: Figure, path: Path) -> None:
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
