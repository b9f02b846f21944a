"""GRPO on a round's data set (paper, sections 3.2 and 5.1): group rollouts, rewards, one update a batch."""

from __future__ import annotations

import contextlib
import json
import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from looptool_jax.data.store import DataError, Progress, join, read_jsonl, write_jsonl
from looptool_jax.inference.answers import Answer, AnswerConfig, Answerer
from looptool_jax.limits import above, at_least
from looptool_jax.loop.console import Console
from looptool_jax.loop.keys import key_for, random_for
from looptool_jax.loop.metrics import Speed, step_metrics
from looptool_jax.loop.reward import RewardConfig, score
from looptool_jax.models.lora import LoraConfig
from looptool_jax.parallel.processes import Preempted, meet, preempted
from looptool_jax.toolcall import Sample
from looptool_jax.training.grpo import GrpoConfig
from looptool_jax.training.optimizer import OptimizerConfig


@dataclass
class TrainConfig:
    """A round of training.

    batch: prompts of one step. epochs: passes over D_j. group: answers a prompt (G). temperature: of the rollouts.
    updates: optimiser updates on each batch of rollouts (1: on-policy, as in the paper; the batch is cut into that
    many mini-batches). checkpoint_every: steps between checkpoints, the resolution of resuming.
    lora: train adapters beside frozen weights; null: all weights. offload: master weights and optimiser state wait in
    pinned host memory while rollouts are made.
    """

    batch: int = 128
    epochs: int = 2
    group: int = 16
    temperature: float = 1.0
    updates: int = 1
    checkpoint_every: int = 10
    lora: LoraConfig | None = None
    offload: bool = False
    grpo: GrpoConfig = field(default_factory=GrpoConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    answers: AnswerConfig = field(default_factory=AnswerConfig)

    def __post_init__(self) -> None:
        for name in ("batch", "epochs", "group", "updates", "checkpoint_every"):
            at_least(f"train.{name}", getattr(self, name), 1)
        above("train.temperature", self.temperature, 0)
        if self.batch % self.updates:
            raise ValueError(f"train.updates: {self.updates} does not divide train.batch={self.batch}")
        if self.lora is not None and self.offload:
            raise ValueError("train.offload: adapters and their optimiser state are small and stay; leave it false")
        longest = self.answers.prompt_tokens + self.answers.answer_tokens
        if self.grpo.micro_tokens < longest:
            raise ValueError(
                f"train.grpo.micro_tokens: {self.grpo.micro_tokens} is less than the {longest} tokens of the longest "
                "prompt with an answer (train.answers)"
            )


class Batch(NamedTuple):
    """The samples of one step."""

    epoch: int
    samples: list[Sample]


PASSED = "passed.jsonl"


class Passed(NamedTuple):
    """A line of `passed.jsonl`: how many of the group's answers to a sample were right in an epoch."""

    id: str
    epoch: int
    right: int
    group: int

    @property
    def zero_variance(self) -> bool:
        """Whether the group taught nothing: all advantages were 0."""
        return self.right in (0, self.group)


def pass_rates(folder: str) -> dict[str, float]:
    """The share of right answers to each sample in all epochs of a round's training, by id."""
    right: dict[str, list[float]] = {}
    for line in read_passed(folder):
        right.setdefault(line.id, []).append(line.right / line.group)
    return {id_: statistics.fmean(shares) for id_, shares in right.items()}


def read_passed(folder: str) -> list[Passed]:
    return [Passed(**row) for row in read_jsonl(join(folder, PASSED))]


def schedule(samples: Sequence[Sample], cfg: TrainConfig, seed: int, round_: int) -> list[Batch]:
    """The batches of a round: every epoch in an order of its own, the rest that fills no batch left out.

    Raises DataError where not even one batch can be filled.
    """
    if len(samples) < cfg.batch:
        raise DataError(f"training needs at least train.batch={cfg.batch} samples, the round has {len(samples)}")
    batches = []
    for epoch in range(cfg.epochs):
        order = list(samples)
        random_for(seed, round_, "train", epoch).shuffle(order)
        for i in range(len(order) // cfg.batch):
            batches.append(Batch(epoch, order[i * cfg.batch : (i + 1) * cfg.batch]))
    return batches


def train(
    policy: Answerer,
    samples: Sequence[Sample],
    cfg: TrainConfig,
    reward: RewardConfig,
    seed: int,
    round_: int,
    out: str,
    console: Console,
) -> dict[str, Any]:
    """Train the policy on D_j; writes the new weights to `out/policy` (Hugging Face format) and returns the metrics.

    The optimiser starts fresh. Steps are logged to `out/steps.jsonl`, how fast they were to the console alone; how many
    of the answers to each sample were right, epoch by epoch, to `out/passed.jsonl`. Killed and called again with the
    same arguments, it continues from the last checkpoint in `out/checkpoints` and ends with the same weights.
    Raises Preempted when the machine is wanted back, behind a checkpoint of the last finished step; DataError where the
    loss or its gradient is no number any more.
    """
    import jax
    import jax.numpy as jnp

    from looptool_jax.training.optimizer import learning_rate
    from looptool_jax.training.policy import PolicyTrainer

    batches = schedule(samples, cfg, seed, round_)
    optimizer = cfg.optimizer
    if optimizer.schedule == "cosine" and not optimizer.total_steps:
        optimizer = replace(optimizer, total_steps=len(batches) * cfg.updates)
    longest = (cfg.answers.prompt_tokens, cfg.answers.answer_tokens)
    key = jax.random.wrap_key_data(jnp.array(key_for(seed, "adapters"), jnp.uint32))
    trainer = PolicyTrainer(
        policy.lm, optimizer, cfg.grpo, join(out, "checkpoints"), longest, cfg.temperature,
        updates=cfg.updates, lora=cfg.lora, key=key, offload=cfg.offload,
    )  # fmt: skip
    step = saved = trainer.restore()
    log = _StepLog(join(out, "progress.jsonl"), step)
    meet(f"what is done in {out}", log.rows)
    rate = learning_rate(optimizer)
    speeds: list[Speed] = []
    console.expect(len(batches), step)
    while step < len(batches):
        batch, started = batches[step], time.monotonic()
        answerer = Answerer(trainer.policy(), policy.thinking, policy.on_prompts)
        keys = [key_for(seed, round_, "rollout", batch.epoch, sample.id) for sample in batch.samples]
        groups = None
        with contextlib.suppress(Preempted):  # behind the block nothing of the rollouts is on the devices any more
            groups = answerer.groups(batch.samples, cfg.group, keys, cfg.temperature, cfg.answers, console.tokens)
        if groups is None:
            if step > saved:
                trainer.save(step)
            raise Preempted
        generated = time.monotonic()
        rewards = np.array(
            [
                [float(score(answer.text, answer.finish, sample, reward).ok) for answer in group]
                for sample, group in zip(batch.samples, groups, strict=True)
            ]
        )
        prompts = [answerer.prompt(sample) for sample in batch.samples]
        scored = time.monotonic()
        metrics = trainer.update(prompts, groups, rewards)
        seconds = time.monotonic() - scored
        if odd := [name for name in ("loss", "grad_norm") if not math.isfinite(metrics[name])]:
            raise DataError(
                f"{out}: {odd[0]} is {metrics[odd[0]]} in step {step + 1} of {len(batches)}, so the weights are lost; "
                "try a lower train.optimizer.learning_rate, or train.grpo.compute_dtype=float32, in another run_dir"
            )
        metrics["learning_rate"] = float(f"{float(rate(step * cfg.updates)):.8g}")
        step += 1
        row = {"step": step, "epoch": batch.epoch, **_rollout_metrics(groups, rewards), **metrics}
        speeds.append(
            Speed(
                row["answer_tokens"] / (generated - started), (metrics["tokens"] + metrics["prompt_tokens"]) / seconds,
                trainer.share_of_peak(prompts, groups, seconds),
            )
        )  # fmt: skip
        meet(f"step {step} of {out}", row)
        passed = [
            Passed(sample.id, batch.epoch, int(right), cfg.group)._asdict()
            for sample, right in zip(batch.samples, rewards.sum(axis=1), strict=True)
        ]
        log.append(row | {"passed": passed})
        console.log(step, step_metrics(row) | speeds[-1].metrics())
        stop = preempted()
        if step % cfg.checkpoint_every == 0 or step == len(batches) or stop:
            trainer.save(step)
            saved = step
        if stop:
            raise Preempted
        console.advance(1, reward=float(rewards.mean()), loss=metrics["loss"])
    console.speed = _median(speeds)
    passed = [line for row in log.rows for line in row.pop("passed")]
    write_jsonl(join(out, PASSED), passed)
    write_jsonl(join(out, "steps.jsonl"), log.rows)
    trainer.export(join(out, "policy"))
    return summary(log.rows) | {"parts": by_part(samples, [Passed(**line) for line in passed])}


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The round's training in a few numbers; first and last are means over a quarter of the steps."""
    quarter = max(1, len(rows) // 4)

    def mean(part: Sequence[dict[str, Any]], key: str) -> float:
        return round(sum(row[key] for row in part) / max(1, len(part)), 6)

    return {
        "steps": len(rows),
        "reward_first": mean(rows[:quarter], "reward"),
        "reward_last": mean(rows[-quarter:], "reward"),
        "zero_variance": mean(rows, "zero_variance"),
        "truncated": mean(rows, "truncated"),
        "grad_norm": mean(rows, "grad_norm"),
        "answer_tokens": sum(row["answer_tokens"] for row in rows),
    }


def by_part(samples: Sequence[Sample], passed: Sequence[Passed]) -> dict[str, dict[str, float]]:
    """What each part of D_j taught, by the kind of its samples' origin: groups, the share of right answers, and the
    share of groups without variance."""
    kinds = {sample.id: sample.origin.kind for sample in samples}
    lines: dict[str, list[Passed]] = {}
    for line in passed:
        lines.setdefault(kinds[line.id], []).append(line)
    return {
        kind: {
            "groups": len(found),
            "pass_rate": round(statistics.fmean(line.right / line.group for line in found), 6),
            "zero_variance": round(statistics.fmean(line.zero_variance for line in found), 6),
        }
        for kind, found in sorted(lines.items())
    }


def _rollout_metrics(groups: Sequence[Sequence[Answer]], rewards: np.ndarray) -> dict[str, Any]:
    answers = [answer for group in groups for answer in group]
    lengths = [len(answer.tokens) for answer in answers]
    return {
        "reward": round(float(rewards.mean()), 6),
        "reward_std": round(float(rewards.std(axis=1, ddof=min(1, rewards.shape[1] - 1)).mean()), 6),
        "zero_variance": round(float((rewards.max(1) == rewards.min(1)).mean()), 6),
        "solved": round(float((rewards.min(1) == 1).mean()), 6),
        "truncated": round(sum(answer.finish == "length" for answer in answers) / len(answers), 6),
        "answer_tokens": sum(lengths),
        "length_mean": round(sum(lengths) / len(lengths), 6),
        "length_min": min(lengths),
        "length_max": max(lengths),
    }


def _median(speeds: Sequence[Speed]) -> dict[str, float]:
    """Of the steps of this process; the first of them compiled."""
    rows = [speed.metrics() for speed in speeds]
    return {name: round(statistics.median(row[name] for row in rows), 6) for name in (rows[0] if rows else ())}


class _StepLog:
    """The steps' metrics; rows after the restored checkpoint belong to steps that are done again."""

    def __init__(self, path: str, step: int) -> None:
        self._progress = Progress(path)
        kept: dict[int, dict[str, Any]] = {}
        for row in self._progress.rows():
            kept = {number: old for number, old in kept.items() if number < row["step"]}
            kept[row["step"]] = row
        self.rows = [row for number, row in sorted(kept.items()) if number <= step]
        if [row["step"] for row in self.rows] != list(range(1, step + 1)):
            raise DataError(f"{path}: steps are missing before the checkpoint; delete the stage's folder to redo it")

    def append(self, row: dict[str, Any]) -> None:
        row = json.loads(json.dumps(row))
        self._progress.append(row)
        self.rows.append(row)
