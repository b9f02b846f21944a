"""What a run compiles, and what else lies on a chip while each program runs.

Everything is taken from the code that runs: engines, steps and placements are those of the stages, with shapes in the
place of arrays. So neither weights nor devices are needed, only the sizes of the models and a mesh.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from looptool_jax.inference.answers import AnswerConfig, Answerer
from looptool_jax.inference.lm import LanguageModel, ModelConfig, resolved_attention
from looptool_jax.inference.scoring import Scorer
from looptool_jax.loop.pool import KEEP, locate_base
from looptool_jax.loop.prompts import VerdictKind
from looptool_jax.loop.run_config import RunConfig
from looptool_jax.models import decoder, linear, lora
from looptool_jax.models.config import DecoderConfig
from looptool_jax.models.lora import LoraConfig
from looptool_jax.models.presets import PRESETS
from looptool_jax.parallel import rules
from looptool_jax.parallel.mesh import make_mesh
from looptool_jax.parallel.residents import Resident
from looptool_jax.training.accumulate import check_rows
from looptool_jax.training.grpo import compares_rollouts, make_grpo_step, make_logprob_step, trained_params
from looptool_jax.training.optimizer import OptimizerConfig, TrainState, lay_out, make_optimizer
from looptool_jax.training.policy import make_resharding
from looptool_jax.training.rows import MicroBatch, abstract_rows, alignment
from looptool_jax.training.sft import SftBatch, SftConfig, make_sft_step


class Memory(NamedTuple):
    """Bytes on one device, and in the memory of its host on its behalf."""

    device: int = 0
    host: int = 0

    def __add__(self, other: Memory) -> Memory:  # type: ignore[override]
        return Memory(self.device + other.device, self.host + other.host)


class Setting(NamedTuple):
    """A setting that changes what a phase needs. power: the memory it governs grows with value ** power."""

    key: str
    value: int
    others: tuple[int, ...]  # that need less memory, the nearest first
    power: int


@dataclass(frozen=True)
class Phase:
    """A program of the run.

    arguments: what it is called with. residents: what else is on the device meanwhile, by name. settings: what can be
    changed where it does not fit. caches: bytes of keys and values among arguments and residents, on the device.
    """

    name: str
    lower: Callable[[], jax.stages.Lowered]
    arguments: Memory
    residents: Mapping[str, Memory]
    settings: tuple[Setting, ...]
    caches: int = 0


def phases(cfg: RunConfig, devices: Sequence[jax.Device]) -> list[Phase]:
    """The programs of a late round in the order in which they run, an engine that is nowhere larger than another of its
    model left out.

    Raises:
        ModelError: the sizes of a model are not known. ShardingError, EngineError: sizes that do not fit the mesh.
    """
    mesh = make_mesh(cfg.mesh, devices)
    plan = _Plan(cfg, mesh)
    found: list[Phase] = []
    if cfg.warmup:
        found.append(plan.warmup())
    found += plan.rollouts()
    found += plan.updates()
    if not cfg.static and (cfg.finish_loop or cfg.rounds > 1):
        found += plan.loop()
    return found


def bytes_of(tree: Any) -> Memory:
    """Memory of a tree of placed shapes or arrays on one device, and on the host for those in pinned host memory."""
    total = Memory()
    for leaf in jax.tree.leaves(tree):
        size = math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        total += Memory(host=size) if leaf.sharding.memory_kind == "pinned_host" else Memory(size)
    return total


class _Plan:
    """The models and states of a run as shapes on a mesh; None for a judge or generator that is not on it."""

    def __init__(self, cfg: RunConfig, mesh: Mesh) -> None:
        self.cfg, self.mesh = cfg, mesh
        self.policy = _abstract_model(cfg.policy, mesh)
        self.judge = self._same_or_new(cfg.judge_model)
        self.generator = self._same_or_new(cfg.generator_model or cfg.judge_model)
        self.shards = rules.batch_shards(mesh)
        self.pool = self._models_on_device()
        self.engines: list[tuple[LanguageModel, dict[str, Any], AnswerConfig]] = []

    def _same_or_new(self, model: ModelConfig) -> LanguageModel | None:
        if not model.path:
            return None
        for cfg, lm in ((self.cfg.policy, self.policy), (self.cfg.judge_model, getattr(self, "judge", None))):
            if cfg == model and lm is not None:
                return lm
        return _abstract_model(model, self.mesh)

    def _models_on_device(self) -> dict[str, dict[tuple, LanguageModel]]:
        """The models alive in each stage of a late round: those the pool keeps, and those the stage was lent."""
        cfg = self.cfg
        generator = cfg.generator_model or cfg.judge_model
        pool: dict[tuple, LanguageModel] = {}
        alive: dict[str, dict[tuple, LanguageModel]] = {}
        for round_ in (1, 2, 3):
            stages: dict[str, list[tuple[tuple, LanguageModel | None]]] = {
                "train": [((cfg.policy, round_ - 1), self.policy)],
                "probe": [((cfg.policy, round_), self.policy)],
                "judge": [((cfg.judge_model, 0), self.judge)],
                "expand": [((generator, 0), self.generator), ((cfg.judge_model, 0), self.judge)],
            }
            for stage, models in stages.items():
                lent = [(key, lm) for key, lm in models if lm is not None]
                for key, lm in lent:
                    pool.pop(key, None)
                    pool[key] = lm
                    while len(pool) > KEEP:
                        del pool[next(iter(pool))]
                alive[stage] = pool | dict(lent)
        return alive

    def _others(self, stage: str, used: LanguageModel | None) -> Memory:
        """What the models of a stage hold, in their hosts' memory, beside the one that is at work."""
        models = list(self.pool[stage].values())
        if used in models:
            models.remove(used)
        return Memory(host=sum(bytes_of(model.params).device for model in models))

    # --- training ---------------------------------------------------------------------------------------------------

    def _state(self, optimizer: OptimizerConfig, lora: LoraConfig | None) -> tuple[Any, TrainState, TrainState]:
        tx = make_optimizer(replace(optimizer, total_steps=optimizer.total_steps or 2))
        return tx, *lay_out(tx, *trained_params(self.policy.cfg, lora), self.mesh)

    def updates(self) -> Iterator[Phase]:
        cfg = self.cfg.train
        tx, shardings, state = self._state(cfg.optimizer, cfg.lora)
        frozen = () if cfg.lora is None else (self.policy.params,)
        how: dict[str, Any] = {"attention": self.policy.attention, "lora": cfg.lora}
        step = make_grpo_step(
            self.policy.cfg, cfg.grpo, tx, self.mesh, shardings, cfg.temperature,
            rollout=compares_rollouts(cfg.temperature), **how,
        )  # fmt: skip
        rows, smaller = self._grpo_rows()
        pieces = tuple(cfg.grpo.logprob_chunk // n for n in (2, 4, 8) if cfg.grpo.logprob_chunk >= n)
        settings = (
            Setting("train.grpo.micro_tokens", cfg.grpo.micro_tokens, smaller, 1),
            Setting("train.grpo.logprob_chunk", cfg.grpo.logprob_chunk, pieces, 1),
            self._tensor_setting(),
        )
        idle = {"idle models": self._others("train", self.policy)}
        moments, params = {"optimiser state": bytes_of(state.opt_state)}, bytes_of((state.params, frozen))
        if cfg.updates > 1:
            logprobs = make_logprob_step(self.policy.cfg, cfg.grpo, self.mesh, shardings.params, cfg.temperature, **how)
            first = replace(rows, old_logprobs=None)
            yield Phase(
                "old log-probs", lambda: logprobs.lower(state.params, first, *frozen), params, {**idle, **moments},
                settings,
            )  # fmt: skip
        gradients = bytes_of(state.params)
        yield Phase(
            "GRPO gradient", lambda: step.lower_gradient(state.params, rows, *frozen), params + gradients,
            {**idle, **moments}, settings,
        )  # fmt: skip
        yield Phase(
            "GRPO update", lambda: step.lower_apply(state), bytes_of(state) + gradients,
            {**idle, "frozen weights": bytes_of(frozen)}, (self._tensor_setting(),),
        )  # fmt: skip

    def _grpo_rows(self) -> tuple[MicroBatch, tuple[int, ...]]:
        """The largest micro-batch, and smaller values of `train.grpo.micro_tokens` that make it smaller."""
        cfg = self.cfg.train
        tokens, longest = cfg.grpo.micro_tokens, (cfg.answers.prompt_tokens, cfg.answers.answer_tokens)
        alignment(self.policy.attention, tokens, *longest)
        smaller = tuple(tokens // n for n in (2, 4, 8) if tokens // n >= sum(longest))
        return abstract_rows(self.shards, tokens, cfg.updates > 1, compares_rollouts(cfg.temperature)), smaller

    def warmup(self) -> Phase:
        cfg = self.cfg.warmup
        assert cfg is not None
        tx, shardings, state = self._state(OptimizerConfig(cfg.learning_rate), None)
        sft = SftConfig(micro_batches=cfg.micro_batches, remat=cfg.remat, compute_dtype=cfg.compute_dtype)
        check_rows("rows", cfg.rows, cfg.micro_batches, self.mesh)
        step = make_sft_step(self.policy.cfg, sft, tx, self.mesh, shardings)
        ids, weights = (jax.ShapeDtypeStruct((cfg.rows, cfg.length), dtype) for dtype in (jnp.int32, jnp.float32))
        most = cfg.rows // self.shards
        finer = tuple(n for n in range(cfg.micro_batches + 1, most + 1) if most % n == 0)
        settings = (Setting("warmup.micro_batches", cfg.micro_batches, finer, -1), self._tensor_setting())
        batch = SftBatch(ids, ids, ids, weights)
        return Phase("warm-up update", lambda: step.lower(state, batch), bytes_of(state), {}, settings)

    # --- decoding ---------------------------------------------------------------------------------------------------

    def rollouts(self) -> Iterator[Phase]:
        cfg = self.cfg.train
        _, shardings, state = self._state(cfg.optimizer, cfg.lora)
        idle = {"idle models": self._others("train", self.policy)}
        engine = partial(self._engine, "rollout", "train.answers", self.policy, cfg.answers, group=cfg.group)
        if cfg.lora is not None:
            adapters = jax.eval_shape(partial(linear.cast, dtype=self.policy.dtype), state.params)
            yield from engine({**idle, "adapters and optimiser state": bytes_of(state)}, adapters=(adapters, cfg.lora))
            return
        copy = make_resharding(self.policy.cfg, self.mesh, shardings.params, self.policy.dtype)
        yield Phase(
            "weights to rollout", lambda: copy.lower(state.params), bytes_of(state.params),
            {**idle, "optimiser state": bytes_of(state.opt_state)}, (self._tensor_setting(),),
        )  # fmt: skip
        master = bytes_of(state)
        waits = Memory(host=master.device) if cfg.offload else master
        yield from engine({**idle, "master weights and optimiser state": waits})

    def loop(self) -> Iterator[Phase]:
        cfg = self.cfg
        used = partial(self._stage_engine, stage="probe", lm=self.policy)
        yield from used("probe", "probe.answers", cfg.probe.answers, drafts=cfg.probe.drafts)
        if cfg.data.heldout:
            yield from used("evaluate", "evaluate.answers", cfg.evaluate.answers, drafts=cfg.evaluate.drafts)
        if cfg.judge.enabled and self.judge:
            used = partial(self._stage_engine, stage="judge", lm=self.judge)
            yield from used("judge", "judge.answers", cfg.judge.answers)
            if cfg.judge.verdicts == "scored":
                scorer = Answerer(self.judge).chooser(cfg.judge.answers, len(VerdictKind))
                yield self._pass("judge choice", "judge.answers", self.judge, scorer, "judge", Memory(), keep=False)
            if cfg.judge.confirm:
                yield from used("confirm", "judge.answers", cfg.judge.answers, drafts=True)
        if cfg.expand.enabled and cfg.compose.expanded_part == "expand":
            if self.generator:
                yield from self._stage_engine(
                    "generate", "expand.answers", cfg.expand.answers, stage="expand", lm=self.generator,
                    among=cfg.expand.grammar, top_p=cfg.expand.top_p, top_k=cfg.expand.top_k,
                )  # fmt: skip
            if self.judge and cfg.expand.verify != "rules":
                yield from self._stage_engine(
                    "verify", "expand.verify_answers", cfg.expand.verify_answers, stage="expand", lm=self.judge,
                    drafts=True if cfg.expand.verify == "answer" else None,
                )  # fmt: skip

    def _stage_engine(
        self, name: str, key: str, sizes: AnswerConfig, *, stage: str, lm: LanguageModel, drafts: bool | None = None,
        among: bool = False, **more: Any,
    ) -> Iterator[Phase]:  # fmt: skip
        """The phases of an engine, unless one of the same model that is nowhere smaller came before.

        drafts: of greedy answers to samples, whether they are drafted; None: of replies in chats, whose prompts share
        their beginnings. among: whether grammars say which tokens may follow.
        """
        answerer = Answerer(lm)
        drafts = drafts and answerer.exact_drafts
        how = {**more, "drafts": drafts, "among": among}
        covering = [old_how for old_lm, old_how, old in self.engines if old_lm is lm and _covers(old, sizes)]
        if how in covering:
            return
        self.engines.append((lm, how, sizes))
        scorer, passes = answerer.scorer(sizes) if drafts else None, "check"
        if drafts is None:
            scorer, passes = answerer.prompt_scorer(sizes), "prompts"  # in place of the engine's own prefill
        else:
            more["draft_len"] = sizes.answer_tokens
        before = {how["drafts"] for how in covering}  # a check is larger than the pass over prompts alone
        if scorer and not before & ({True} if drafts else {True, None}):
            caches = bytes_of(answerer.engine(sizes, **more).abstract_state)
            yield self._pass(f"{name} {passes}", key, lm, scorer, stage, caches, keep=True)
        left = {"computed in rows": bytes_of(scorer.abstract_computed(lm.params))} if scorer else {}
        for phase in self._engine(name, key, lm, sizes, {"idle models": self._others(stage, lm)}, among=among, **more):
            if phase.name == f"{name} prefill":
                if drafts is not None and before <= {None}:
                    yield phase
            elif phase.name == f"{name} guesses":
                if True not in before:
                    yield replace(phase, residents={**phase.residents, **left})
            # How tokens are drawn changes nothing but decoding.
            elif phase.name in (f"{name} decode", f"{name} among") or not before:
                yield replace(phase, residents={**phase.residents, **left})

    def _pass(
        self, name: str, key: str, lm: LanguageModel, scorer: Scorer, stage: str, caches: Memory, *, keep: bool
    ) -> Phase:
        """A pass that scores given tokens, beside the caches in which answers go on. keep: what they go on from."""
        longest = attrgetter(f"{key}.prompt_tokens")(self.cfg)
        settings = (Setting(f"{key}.prompt_tokens", longest, (longest // 2,), 1), self._tensor_setting())
        residents = {"idle models": self._others(stage, lm), "caches": caches}
        lower = partial(scorer.lower, lm.params, keep=keep)
        return Phase(name, lower, bytes_of(lm.params), residents, settings, caches.device)

    def _engine(
        self, name: str, key: str, lm: LanguageModel, sizes: AnswerConfig, residents: dict[str, Memory],
        adapters: tuple[Any, LoraConfig] | None = None, among: bool = False, **more: Any,
    ) -> Iterator[Phase]:  # fmt: skip
        engine = Answerer(lm).engine(sizes, **more)
        params = engine.abstract(lora.attach(lm.params, *adapters) if adapters else lm.params)
        state, weights = engine.abstract_state, bytes_of(params)
        fewer = tuple(range(sizes.slots - sizes.slots % self.shards, 0, -self.shards))
        settings = (
            Setting(f"{key}.slots", sizes.slots, tuple(n for n in fewer if n < sizes.slots), 1),
            self._tensor_setting(),
        )
        caches = bytes_of(state)
        rest = {"weights": weights, "answers' caches": bytes_of((state.answer_kv, state.rows))}
        made = partial(Phase, settings=settings, caches=caches.device)
        yield made(f"{name} prefill", partial(engine.lower_prefill, params), weights, {**residents, "caches": caches})
        yield made(
            f"{name} insert", partial(engine.lower_insert, params), bytes_of(state.prompt_kv), {**residents, **rest}
        )
        yield made(f"{name} decode", partial(engine.lower_generate, params), weights + caches, residents)
        if among:
            yield made(f"{name} among", partial(engine.lower_among, params), weights + caches, residents)
        if engine.draft_len:
            yield made(f"{name} guesses", partial(engine.lower_follow, params), weights + caches, residents)

    def _tensor_setting(self) -> Setting:
        """More tensor parallelism splits weights and caches further."""
        now = self.mesh.shape["tensor"]
        heads = {lm.cfg.num_kv_heads for lm in (self.policy, self.judge) if lm is not None}
        most = math.gcd(*heads, self.mesh.size)
        return Setting("mesh.tensor", now, tuple(n for n in range(now + 1, most + 1) if most % n == 0), -1)


@dataclass(frozen=True)
class _NoTokenizer:
    """What engines ask of a tokenizer: ids, whose values change no size."""

    eos_ids: tuple[int, ...] = (1, 2)
    pad_id: int = 0
    vocab_size: int = 3


def _abstract_model(cfg: ModelConfig, mesh: Mesh) -> LanguageModel:
    """The model as it is lent to stages, with shapes for weights. Raises ModelError, ShardingError."""
    model = _sizes(cfg.place)
    dtype = "float32" if cfg.dtype == "float32" else "bfloat16"
    shapes = decoder.abstract_params(model, jnp.dtype(dtype))
    if cfg.dtype == "int8":
        shapes = jax.eval_shape(linear.quantize_layers, shapes)
    axes = linear.axes_of(shapes, decoder.logical_axes(model))
    weights = Resident(rules.placed(shapes, rules.param_shardings(mesh, axes, shapes, rules.DECODING)))
    attention = resolved_attention(cfg.attention, mesh)
    return LanguageModel(model, weights, _NoTokenizer(), mesh, dtype, attention)  # type: ignore[arg-type]


def _sizes(path: str) -> DecoderConfig:
    base = locate_base(path)
    if base in PRESETS and not Path(base).is_dir():
        return PRESETS[base]
    return DecoderConfig.from_pretrained(base)


def _covers(one: AnswerConfig, other: AnswerConfig) -> bool:
    """Whether an engine of the first sizes is nowhere smaller than one of the second."""
    names = ("prompt_tokens", "answer_tokens", "slots")
    return one.prefill_batch == other.prefill_batch and all(getattr(one, n) >= getattr(other, n) for n in names)
