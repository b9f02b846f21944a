"""Warm-up: supervised training before the loop.

`train_nano` makes the embedded model from nothing: tokenizer, policy, judge. It is the command its shipped weights were
made with. `sft_warmup` trains any loaded model on the targets of given samples, for policies that have never seen the
task (the paper's backbone has, and needs none).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import Mesh

from looptool_jax.data.store import DataError, dump_json, exists, join, read_bytes, read_jsonl, write_bytes, write_jsonl
from looptool_jax.inference.answers import AnswerConfig, Answerer
from looptool_jax.inference.lm import LanguageModel
from looptool_jax.limits import above, at_least
from looptool_jax.loop import nano_examples as examples
from looptool_jax.loop.keys import key_for
from looptool_jax.loop.nano_tokenizer import build_tokenizer
from looptool_jax.models import decoder
from looptool_jax.models.config import DecoderConfig
from looptool_jax.models.hf import save_pretrained
from looptool_jax.parallel.mesh import MeshConfig, make_mesh
from looptool_jax.parallel.processes import Preempted, meet, preempted
from looptool_jax.toolcall import ChatTokenizer, Sample, match
from looptool_jax.training import checkpoint
from looptool_jax.training.optimizer import OptimizerConfig, TrainState, init_state, lay_out, make_optimizer
from looptool_jax.training.sft import SftBatch, SftConfig, epoch_batches, make_sft_step, pack
from looptool_jax.world import generate as world_samples

Log = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Stage:
    """A part of nano's training.

    steps: updates, each on rows × length tokens. mix: share of each task among the examples. categories: weights of
    the world's categories, None for its own. prompt_weight: of the tokens of a prompt to answer in the loss (it
    teaches copying); prompts of the other tasks weigh a fifth of it. learning_rate: starts a new cosine cycle with a
    fresh optimiser; None continues the present one. careless_share: of the answers, those with careless labels.
    """

    steps: int
    rows: int
    length: int
    mix: dict[str, float] = field(default_factory=lambda: {"answer": 1.0})
    categories: dict[str, float] | None = None
    prompt_weight: float = 0.3
    learning_rate: float | None = None
    careless_share: float = 0.0


_EASY = {
    "single": 0.33,
    "multiple": 0.28,
    "multi_turn": 0.225,
    "parallel": 0.06,
    "parallel_multiple": 0.05,
    "missing_parameter": 0.03,
    "irrelevant": 0.025,
}

_HARD = {
    "single": 0.13,
    "multiple": 0.16,
    "multi_turn": 0.16,
    "parallel": 0.1,
    "parallel_multiple": 0.11,
    "missing_parameter": 0.16,
    "irrelevant": 0.18,
}
_MIX = {"answer": 0.45, "judge": 0.3, "expand": 0.25}
_JUDGE_MIX = {"answer": 0.35, "judge": 0.45, "expand": 0.2}


@dataclass(frozen=True)
class NanoConfig:
    """The recipe of the shipped weights; another seed or another number changes them.

    The judge is written after stage number `judge_stage` (from 1), the policy at the end. It has lately seen few of the
    harder categories, and careless labels: it calls where it should ask, and often writes numbers as strings, though it
    could do better. That is the headroom it leaves to the loop. From stage `mistakes_from` on, every stage before the
    judge's last ends with collecting the model's wrong answers to `mistakes` new samples; the next one learns to judge
    them. judge_weight: of the tokens of a judge's reply in the loss; they are few.
    """

    seed: int = 1
    hidden_size: int = 128
    intermediate_size: int = 384
    num_layers: int = 4
    num_heads: int = 4
    num_kv_heads: int = 2
    head_dim: int = 32
    warmup_steps: int = 100
    judge_weight: float = 3.0
    stages: tuple[Stage, ...] = (
        Stage(1000, 16, 256, categories={"single": 1.0}, learning_rate=3.5e-3),
        Stage(2000, 8, 512, categories=_EASY),
        Stage(1700, 8, 512, _MIX, categories=_EASY, prompt_weight=0.1),
        Stage(3300, 8, 512, _MIX, prompt_weight=0.0),
        Stage(2500, 8, 512, _JUDGE_MIX, categories=_HARD, prompt_weight=0.0, learning_rate=2e-3),
        Stage(150, 8, 512, categories=_EASY, prompt_weight=0.0, learning_rate=5e-4, careless_share=0.6),
    )
    judge_stage: int = 5
    mistakes_from: int = 2
    tokenizer_samples: int = 12000
    chunk_samples: int = 1500
    mistakes: int = 6000
    checkpoint_chunks: int = 6
    evaluation_samples: int = 200

    def __post_init__(self) -> None:
        if not self.stages or self.stages[0].learning_rate is None:
            raise ValueError("nano: the first stage needs a learning_rate")

    @classmethod
    def with_sizes(cls, settings: Sequence[str]) -> NanoConfig:
        """The recipe with other sizes or another seed, such as hidden_size=256. Raises DataError."""
        known = ("seed", "hidden_size", "intermediate_size", "num_layers", "num_heads", "num_kv_heads", "head_dim")
        given: dict[str, Any] = {}
        for setting in settings:
            key, _, value = setting.partition("=")
            if key not in known or not value.isdecimal() or (not int(value) and key != "seed"):
                raise DataError(
                    f"{setting!r}: of the embedded model a whole number can be given for {', '.join(known)}, such as "
                    "hidden_size=256; the rest is its recipe (--data trains another model)"
                )
            given[key] = int(value)
        cfg = cls(**given)
        if cfg.seed >= WARMUP_SEEDS:
            raise DataError(f"seed={cfg.seed}: from 0 to {WARMUP_SEEDS - 1}")
        if cfg.num_heads % cfg.num_kv_heads:
            raise DataError(f"num_kv_heads={cfg.num_kv_heads} does not divide num_heads={cfg.num_heads}")
        if cfg.head_dim % 2:
            raise DataError(f"head_dim={cfg.head_dim}: rotary positions need an even number")
        return cfg

    def cycle(self, number: int) -> tuple[float, int]:
        """Learning rate and number of steps of the cosine cycle that stage `number` (from 0) belongs to."""
        starts = [i for i, stage in enumerate(self.stages) if stage.learning_rate is not None] + [len(self.stages)]
        first, end = next((a, b) for a, b in pairwise(starts) if a <= number < b)
        rate = self.stages[first].learning_rate
        assert rate is not None
        return rate, sum(stage.steps for stage in self.stages[first:end])


@dataclass(frozen=True)
class WarmupConfig:
    """Plain supervised training on samples' targets: AdamW, cosine to zero, loss on answer tokens only.

    epochs: passes over the samples. rows: of a step. length: tokens of a row. learning_rate: the highest. warmup_share:
    of the steps, in which the rate rises from zero. micro_batches: parts of a step that are computed one after the
    other. remat: what is computed again in the backward pass. checkpoint_every: steps between checkpoints, the
    resolution of resuming. compute_dtype: of the model's passes; parameters keep their own. seed: of the order of the
    samples.
    """

    epochs: int = 1
    rows: int = 8
    length: int = 2048
    learning_rate: float = 1e-5
    warmup_share: float = 0.05
    micro_batches: int = 1
    remat: decoder.Remat = "none"
    checkpoint_every: int = 50
    compute_dtype: Literal["float32", "bfloat16"] = "bfloat16"
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "rows", "length", "micro_batches", "checkpoint_every"):
            at_least(f"warmup.{name}", getattr(self, name), 1)
        above("warmup.learning_rate", self.learning_rate, 0)
        if self.rows % self.micro_batches:
            raise ValueError(f"warmup.micro_batches: {self.micro_batches} does not divide warmup.rows={self.rows}")
        if not 0 <= self.warmup_share < 1:
            raise ValueError(f"warmup.warmup_share: expected a share from 0 to below 1, found {self.warmup_share}")


def train_nano(cfg: NanoConfig, out_dir: str | Path, log: Log) -> None:
    """Makes out_dir/tokenizer, out_dir/policy and out_dir/judge (Hugging Face format).

    Reproducible from `cfg` on the same machine, and resumable: a second call continues from the newest checkpoint in
    out_dir/checkpoints. `log` gets rows of the training curve (loss; held-out exact match by category at checkpoints).
    Raises DataError where out_dir holds a model of another recipe.
    """
    out = Path(out_dir)
    recipe = dump_json(asdict(cfg)) + b"\n"
    if exists(path := join(str(out), "recipe.json")) and read_bytes(path) != recipe:
        raise DataError(f"{path}: the folder holds a model of other sizes or another seed; choose another --out")
    write_bytes(path, recipe)
    if not (out / "tokenizer" / "tokenizer_config.json").is_file():  # written last
        build_tokenizer(tokenizer_texts(cfg), out / "tokenizer")
    tokenizer = ChatTokenizer.from_pretrained(out / "tokenizer", "qwen3")
    model = DecoderConfig(
        "qwen3", tokenizer.vocab_size, cfg.hidden_size, cfg.intermediate_size, cfg.num_layers, cfg.num_heads,
        cfg.num_kv_heads, cfg.head_dim, rope_theta=10000.0, max_position_embeddings=2048,
    )  # fmt: skip
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])

    def trainer_of(number: int) -> _Trainer:
        rate, steps = cfg.cycle(number)
        return _Trainer(
            model,
            mesh,
            OptimizerConfig(rate, "cosine", cfg.warmup_steps, steps, b2=0.98),
            SftConfig(remat="full", compute_dtype="float32"),
        )

    cursor = {"stage": 0, "chunk": 0, "done": 0, "step": 0}
    trainer = trainer_of(0)
    state = trainer.fresh(decoder.init_params(model, jax.random.key(cfg.seed)))
    lm = LanguageModel.of(model, state.params, tokenizer, mesh)
    if (newest := checkpoint.latest(out / "checkpoints")) is not None:
        restored = checkpoint.restore(newest, trainer.abstract)
        state, cursor = restored.state, restored.extra
        trainer = trainer_of(min(cursor["stage"], len(cfg.stages) - 1))
    held_out = world_samples("heldout", cfg.evaluation_samples, cfg.seed)

    def commit(state: TrainState, cursor: dict[str, int]) -> None:
        checkpoint.save(checkpoint.step_path(out / "checkpoints", cursor["step"]), state, cursor, keep=2)
        log({"step": cursor["step"], "accuracy": accuracy(lm.with_params(state.params), held_out)})

    while cursor["stage"] < len(cfg.stages):
        stage = cfg.stages[cursor["stage"]]
        if stage.learning_rate is not None and cursor["done"] == 0 and cursor["stage"]:
            trainer = trainer_of(cursor["stage"])
            state = trainer.fresh(state.params)
        chunks = _chunks(cfg, cursor["stage"], cursor["chunk"], tokenizer, out)
        while cursor["done"] < stage.steps:
            losses = []
            for batch in next(chunks):
                if cursor["done"] == stage.steps:
                    break
                state, metrics = trainer.step(state, batch)
                losses.append(metrics["loss"])
                cursor["done"] += 1
                cursor["step"] += 1
            cursor["chunk"] += 1
            log({"step": cursor["step"], "stage": cursor["stage"] + 1, "loss": float(np.mean(jax.device_get(losses)))})
            if cursor["chunk"] % cfg.checkpoint_chunks == 0:
                commit(state, cursor)
        cursor |= {"stage": cursor["stage"] + 1, "chunk": 0, "done": 0}
        if cursor["stage"] == cfg.judge_stage:
            save_pretrained(state.params, model, out / "judge", out / "tokenizer")
        elif cfg.mistakes_from <= cursor["stage"] < cfg.judge_stage:
            mistakes = _mistakes(lm.with_params(state.params), cfg, cursor["stage"])
            write_jsonl(_mistakes_file(out, cursor["stage"]), mistakes)
        commit(state, cursor)
    save_pretrained(state.params, model, out / "policy", out / "tokenizer")


def sft_warmup(
    lm: LanguageModel,
    samples: Sequence[Sample],
    cfg: WarmupConfig,
    checkpoints: str,
    log: Log,
    thinking: bool = False,
) -> tuple[LanguageModel, list[float]]:
    """The model after training on the samples' targets, and the loss of every step.

    Samples longer than a row are left out, and logged. A second call with the same arguments continues from the
    newest checkpoint in `checkpoints` and ends with the same weights. Raises DataError where no batch can be filled,
    Preempted, behind a checkpoint, after the step in which the machine was wanted back.
    """
    encoded = [examples.answer_example(sample).encode(lm.tokenizer, thinking) for sample in samples]
    packed = pack(encoded, cfg.length)
    epoch_steps = len(packed.batch.tokens) // cfg.rows
    if epoch_steps == 0:
        raise DataError(
            f"warm-up: {len(samples)} samples fill {len(packed.batch.tokens)} rows of {cfg.length} tokens, fewer than "
            f"the {cfg.rows} of a batch; give more samples or fewer rows"
        )
    steps = cfg.epochs * epoch_steps
    optimizer = OptimizerConfig(cfg.learning_rate, "cosine", int(steps * cfg.warmup_share), steps)
    sft = SftConfig(micro_batches=cfg.micro_batches, remat=cfg.remat, compute_dtype=cfg.compute_dtype)
    trainer = _Trainer(lm.cfg, lm.mesh, optimizer, sft)
    losses: list[float] = []
    if (newest := checkpoint.latest(checkpoints)) is not None:
        state, extra, _ = checkpoint.restore(newest, trainer.abstract)
        losses = extra["losses"]
    else:
        state = trainer.start(lm)
    meet("what is done of the warm-up", losses)
    log({"samples": len(samples), "too_long": packed.dropped, "steps": steps, "done": len(losses)})
    while len(losses) < steps:
        epoch, start = divmod(len(losses), epoch_steps)
        for batch in epoch_batches(packed.batch, cfg.rows, cfg.seed, epoch, start):
            state, metrics = trainer.step(state, batch)
            losses.append(float(metrics["loss"]))
            log({"step": len(losses), "loss": losses[-1]})
            meet(f"step {len(losses)} of the warm-up", losses[-1])
            stop = preempted()
            if stop or (len(losses) % cfg.checkpoint_every == 0 and len(losses) < steps):
                checkpoint.save(checkpoint.step_path(checkpoints, len(losses)), state, {"losses": losses}, keep=1)
            if stop:
                raise Preempted
    return lm.with_params(state.params), losses


def tokenizer_texts(cfg: NanoConfig) -> Iterator[str]:
    """What the tokenizer is trained on: prompts and targets of the world's training split."""
    from looptool_jax.toolcall import get_format

    chat = get_format("qwen3")
    for sample in world_samples("train", cfg.tokenizer_samples, WARMUP_SEEDS + cfg.seed):
        yield chat.render(sample.messages, sample.tools, thinking=False) + chat.render_target(sample.target)


def accuracy(lm: LanguageModel, samples: Sequence[Sample]) -> dict[str, float]:
    """Greedy exact match (strict matcher) in all and by category."""
    right: dict[str, list[bool]] = {"all": []}
    for sample, text in zip(samples, _answers(lm, samples), strict=True):
        ok = match(text, sample.target, sample.tools).ok
        right["all"].append(ok)
        right.setdefault(sample.category, []).append(ok)
    return {name: round(float(np.mean(oks)), 4) for name, oks in sorted(right.items())}


WARMUP_SEEDS = 1_000_000  # the world's seeds from here on are the warm-up's; a run takes smaller ones
_SIZES = AnswerConfig(prompt_tokens=640, answer_tokens=160, slots=32, prefill_batch=4)


class _Trainer:
    """The compiled update of one model, and the shapes of its state."""

    def __init__(self, model: DecoderConfig, mesh: Mesh, optimizer_cfg: OptimizerConfig, sft: SftConfig) -> None:
        shapes, axes = decoder.abstract_params(model), decoder.logical_axes(model)
        self._optimizer = make_optimizer(optimizer_cfg)
        self._shardings, self.abstract = lay_out(self._optimizer, shapes, axes, mesh)
        self.step = make_sft_step(model, sft, self._optimizer, mesh, self._shardings)

    def fresh(self, params: decoder.Params) -> TrainState:
        return init_state(self._optimizer, params, self._shardings)

    def start(self, lm: LanguageModel) -> TrainState:
        params = lm.master_params(self._shardings.params)
        return init_state(self._optimizer, params, self._shardings, copy=False)


def _chunks(
    cfg: NanoConfig, stage: int, first: int, tokenizer: ChatTokenizer, out: Path
) -> Iterator[Iterator[SftBatch]]:
    """The stage's data from chunk `first` on; the next chunk is made while the present one is trained on."""
    newest = min(stage, cfg.judge_stage - 1)
    mistakes = list(read_jsonl(_mistakes_file(out, newest))) if newest >= cfg.mistakes_from else []
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(_chunk, cfg, stage, first, tokenizer, mistakes)
        while True:
            batch = coming.result()
            first += 1
            coming = pool.submit(_chunk, cfg, stage, first, tokenizer, mistakes)
            yield epoch_batches(batch, cfg.stages[stage].rows, cfg.seed, first)


def _chunk(
    cfg: NanoConfig, number: int, chunk: int, tokenizer: ChatTokenizer, mistakes: list[dict[str, Any]]
) -> SftBatch:
    """Packed rows of one chunk of a stage: everything follows from (seed, stage, chunk)."""
    stage = cfg.stages[number]
    low, high = key_for("nano", cfg.seed, number, chunk)
    seed = WARMUP_SEEDS + (low | high << 32) % 2**40
    samples = world_samples("train", cfg.chunk_samples, seed, stage.categories)
    parts = []
    made = examples.make(samples, stage.mix, mistakes, seed, stage.careless_share)
    for task in examples.TASKS:
        encoded = [example.encode(tokenizer) for example in made if example.task == task]
        if not encoded:
            continue
        weight = cfg.judge_weight if task == "judge" else 1.0
        prompt_weight = stage.prompt_weight * (1.0 if task == "answer" else 0.2) / weight
        part = pack(encoded, stage.length, prompt_weight=prompt_weight).batch
        parts.append(part._replace(weights=part.weights * weight))
    batch = jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)
    if len(batch.tokens) < stage.rows:
        raise ValueError(
            f"nano: a chunk of {cfg.chunk_samples} samples fills {len(batch.tokens)} rows, not the {stage.rows} of "
            "a batch; raise chunk_samples"
        )
    return batch


def _mistakes_file(out: Path, stage: int) -> str:
    """The mistakes collected after stage number `stage` (from 1). Each stage has its own file: one that is killed
    behind its own collection, before its last checkpoint, needs the earlier one again."""
    return str(out / f"mistakes-{stage}.jsonl")


def _mistakes(lm: LanguageModel, cfg: NanoConfig, stage: int) -> list[dict[str, Any]]:
    """Wrong greedy answers to new training samples."""
    samples = world_samples("train", cfg.mistakes, 2 * WARMUP_SEEDS + 1000 * stage + cfg.seed)
    return [
        {"sample": sample.to_json(), "response": text}
        for sample, text in zip(samples, _answers(lm, samples), strict=True)
        if not match(text, sample.target, sample.tools).ok
    ]


def _answers(lm: LanguageModel, samples: Sequence[Sample]) -> list[str]:
    return [answer.text for answer in Answerer(lm).greedy(samples, _SIZES, lambda tokens: None)]
