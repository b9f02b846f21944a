"""What the embedded model can do: the policy's headroom, the judge's repair, the generator's samples.

    python benchmarks/embedded_model.py [--split heldout|train] [--samples 400] [--noise 0.1] [key=value ...]

The stages are those of a run, with the quickstart's settings, on new samples of the world whose truth is known.
"""

import tempfile
from collections import Counter
from itertools import islice

import numpy as np
from labelled import arguments, labelled, true_verdict

from looptool_jax.config import load_config
from looptool_jax.data.store import read_jsonl, read_samples
from looptool_jax.evaluation.heldout import evaluate
from looptool_jax.evaluation.repair import expansion_validity, label_repair
from looptool_jax.loop.console import Console
from looptool_jax.loop.expand import expand
from looptool_jax.loop.judge import ErrorSeed, judge
from looptool_jax.loop.keys import key_for
from looptool_jax.loop.pool import ModelPool
from looptool_jax.toolcall import match


def main() -> None:
    parser = arguments(__doc__, samples=400, noise=[0.1])
    parser.add_argument("--groups", type=int, default=160, help="samples answered 8 times")
    args = parser.parse_args()
    cfg, console = load_config("quickstart", args.overrides), Console(quiet=True)
    with tempfile.TemporaryDirectory() as out:
        pool = ModelPool(cfg.mesh, out)
        policy, judge_model = pool.lend(cfg.policy), pool.lend(cfg.judge_model)
        samples, noisy, labels, probes = labelled(policy, cfg, args, args.noise[0], out, console)

        greedy_policy = evaluate(policy, samples, cfg.evaluate, f"{out}/policy", console)
        by_category = {name: round(found["accuracy"], 3) for name, found in greedy_policy["by_category"].items()}
        print(f"policy, greedy: {greedy_policy['accuracy']:.3f} of {len(samples)}  {by_category}")
        greedy_judge = evaluate(judge_model, samples, cfg.evaluate, f"{out}/judge_model", console)
        print(f"judge weights, greedy: {greedy_judge['accuracy']:.3f}")
        few = samples[: args.groups]
        keys = [key_for("embedded-model", sample.id) for sample in few]
        groups = policy.groups(few, 8, keys, 1.0, cfg.train.answers, console.tokens)
        hits = np.array(
            [
                [match(answer.text, sample.target, sample.tools).ok for answer in group]
                for sample, group in zip(few, groups, strict=True)
            ]
        )
        greedy = np.mean([row["correct"] for row in islice(read_jsonl(f"{out}/policy/results.jsonl"), len(few))])
        print(
            f"policy, {len(few)} samples: greedy {greedy:.3f}, one answer at temperature 1 {hits.mean():.3f}, any of 8 "
            f"{hits.any(1).mean():.3f} ({100 * (hits.any(1).mean() - greedy):+.1f} points over greedy), mixed groups "
            f"{(hits.any(1) & ~hits.all(1)).mean():.3f}"
        )

        judged = judge(judge_model, noisy, probes, 0, 1, cfg.judge, f"{out}/judge", console)
        print(f"judge: {judged}")
        errors = [ErrorSeed.from_json(row) for row in read_jsonl(f"{out}/judge/errors.jsonl")]
        judgements = list(read_jsonl(f"{out}/judge/judgements.jsonl"))
        print(f"label repair: {label_repair(noisy, [item.sample for item in errors], judgements, labels)}")
        print(f"verdict by truth: {verdicts_by_truth(noisy, judgements, labels)}")

        seeds = [item for item in errors if item.sample.target.is_call][:60]
        limit = (policy, cfg.train.answers.prompt_tokens)
        expanded = expand(judge_model, judge_model, seeds, limit, 0, 1, cfg.expand, f"{out}/expand", console)
        print(f"expand: {expanded}")
        print(f"accepted samples: {expansion_validity(list(read_samples(f'{out}/expand/expanded.jsonl')))}")
        rejected = Counter((row["tier"], row["reason"][:60]) for row in read_jsonl(f"{out}/expand/rejected.jsonl"))
        for (tier, reason), count in rejected.most_common(8):
            print(f"  {count:4} {tier}: {reason}")


def verdicts_by_truth(samples, judgements, labels) -> dict[str, int]:
    """Counts of "truth -> verdict" among the mismatches."""
    by_id = {sample.id: sample for sample in samples}
    counts: Counter[str] = Counter()
    for row in judgements:
        counts[f"{true_verdict(by_id[row['id']], row['answer'], labels)} -> {row['verdict']}"] += 1
    return dict(sorted(counts.items()))


if __name__ == "__main__":
    main()
