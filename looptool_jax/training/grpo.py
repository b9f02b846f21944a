"""Group-relative policy optimisation (Eq. 2) with the prompt computed once per group.

The plan of one update: rows of prompts with all of their answers (`rows.py`) through the model; log-probs of the answer
tokens; the clipped surrogate; the gradients of all micro-batches added up; one optimiser step. Gradients of all answers
add up in the prompt's keys and values and flow through the prompt once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from looptool_jax.limits import at_least
from looptool_jax.models import decoder
from looptool_jax.models.config import DecoderConfig
from looptool_jax.models.linear import cast
from looptool_jax.models.lora import LoraConfig, adapter_axes, attach, init_adapters
from looptool_jax.parallel.rules import batch_sharding, replicated
from looptool_jax.training.accumulate import Metrics
from looptool_jax.training.logprobs import token_logprobs
from looptool_jax.training.optimizer import TrainState, apply_gradients
from looptool_jax.training.rows import MicroBatch, Update

# A log-ratio beyond this is cut, so that its exponential stays finite (verl does the same).
MAX_LOG_RATIO = 20.0


@dataclass(frozen=True)
class GrpoConfig:
    """Defaults: the paper's Table 6 and the verl defaults it left as they are."""

    clip_low: float = 0.2  # the ratio is clipped to [1 - clip_low, 1 + clip_high]
    clip_high: float = 0.28  # Clip-Higher
    dual_clip: float = 3.0  # bound of the loss of a token with negative advantage, in units of |A|
    kl_coefficient: float = 0.0  # of KL(policy || old policy), the k3 estimator
    ratio: Literal["token", "sequence"] = "token"  # "sequence": one ratio per answer, as Eq. 2 is written
    loss_agg: Literal["token-mean", "seq-mean-token-mean"] = "token-mean"  # all tokens weigh alike, or all answers
    micro_tokens: int = 16384  # tokens of a micro-batch on one batch shard
    logprob_chunk: int = 512  # answer tokens of a row whose logits exist at once
    remat: decoder.Remat = "attention"  # what is computed again in the backward pass, see `decoder.forward`
    compute_dtype: Literal["float32", "bfloat16"] = "bfloat16"  # of the model's passes; parameters keep their own

    def __post_init__(self) -> None:
        if self.ratio not in ("token", "sequence"):
            raise ValueError(f"train.grpo.ratio is {self.ratio!r}: use 'token' or 'sequence'")
        if self.loss_agg not in ("token-mean", "seq-mean-token-mean"):
            raise ValueError(f"train.grpo.loss_agg is {self.loss_agg!r}: use 'token-mean' or 'seq-mean-token-mean'")
        if self.compute_dtype not in ("float32", "bfloat16"):
            raise ValueError(f"train.grpo.compute_dtype is {self.compute_dtype!r}: use 'float32' or 'bfloat16'")
        if self.remat not in get_args(decoder.Remat):
            raise ValueError(f"train.grpo.remat is {self.remat!r}: use 'none', 'attention' or 'full'")
        for name, low in (("clip_low", 0), ("clip_high", 0), ("micro_tokens", 1), ("logprob_chunk", 1)):
            at_least(f"train.grpo.{name}", getattr(self, name), low)
        if self.ratio == "sequence" and self.loss_agg == "token-mean":
            raise ValueError(
                "train.grpo.ratio='sequence' has one term per answer, not per token: "
                "set train.grpo.loss_agg='seq-mean-token-mean'"
            )


def group_advantages(rewards: Float[np.ndarray, "n group"]) -> Float[np.ndarray, "n group"]:
    """A_i = (r_i - mean) / (std + 1e-6) within each group, with the unbiased standard deviation; float32.

    A group whose rewards are all equal has A = 0 exactly (so has a group of one): nothing is learnt from it.
    """
    rewards = np.asarray(rewards, np.float64)
    varied = rewards.max(axis=1) > rewards.min(axis=1)
    advantages = np.zeros(rewards.shape, np.float32)
    if varied.any():
        groups = rewards[varied]
        centred = groups - groups.mean(axis=1, keepdims=True)
        advantages[varied] = centred / (groups.std(axis=1, ddof=1, keepdims=True) + 1e-6)
    return advantages


def compares_rollouts(temperature: float) -> bool:
    """Whether the engine's log-probs can be held against the trainer's: the engine gives those of temperature 1, the
    trainer those of the temperature that the answers were drawn at."""
    return temperature == 1.0


class Sums(NamedTuple):
    """What the micro-batches of an update add up to."""

    gradients: Any
    loss: Float[Array, ""]
    metrics: Metrics


@dataclass(frozen=True, eq=False)
class GrpoStep:
    """The compiled update; `gradient` runs once for each micro-batch and adds to its first argument, which it consumes.

    Compiles once for each shape of micro-batches.
    """

    mesh: Mesh
    zeros: Any  # () -> Sums
    gradient: Any  # (Sums, parameters, MicroBatch, *frozen) -> Sums
    apply: Any  # (TrainState, Sums) -> (TrainState, Metrics)

    def __call__(self, state: TrainState, update: Update, *frozen: Any) -> tuple[TrainState, Metrics]:
        """One optimiser step; `state` is consumed. frozen: the parameters that adapters stand beside."""
        with jax.set_mesh(self.mesh):
            sums = self.zeros()
            for micro in update.micro_batches:
                sums = self.gradient(sums, state.params, on_rows(micro, self.mesh), *frozen)
            state, metrics = self.apply(state, sums)
        return state, {**metrics, "tokens": update.answer_tokens, "prompt_tokens": update.prompt_tokens}

    def lower_gradient(self, params: Any, micro: MicroBatch, *frozen: Any) -> jax.stages.Lowered:
        """The gradient of a micro-batch, for shapes in place of arrays, to be compiled without running it."""
        with jax.set_mesh(self.mesh):
            return self.gradient.lower(jax.eval_shape(self.zeros), params, micro, *frozen)

    def lower_apply(self, state: TrainState) -> jax.stages.Lowered:
        with jax.set_mesh(self.mesh):
            return self.apply.lower(state, jax.eval_shape(self.zeros))


@dataclass(frozen=True, eq=False)
class LogprobStep:
    """The compiled log-probs of the policy before several updates on its own data."""

    mesh: Mesh
    function: Any  # (parameters, MicroBatch, *frozen) -> [rows, T]

    def __call__(self, params: Any, update: Update, *frozen: Any) -> Update:
        """The update with `old_logprobs` in its micro-batches."""
        with jax.set_mesh(self.mesh):
            micro_batches = [
                replace(micro, old_logprobs=self.function(params, on_rows(micro, self.mesh), *frozen))
                for micro in update.micro_batches
            ]
        return update._replace(micro_batches=micro_batches)

    def lower(self, params: Any, micro: MicroBatch, *frozen: Any) -> jax.stages.Lowered:
        with jax.set_mesh(self.mesh):
            return self.function.lower(params, micro, *frozen)


def on_rows(micro: MicroBatch, mesh: Mesh) -> MicroBatch:
    """The micro-batch on the devices, its rows over the batch axes."""
    return jax.device_put(micro, batch_sharding(mesh, 1))


def make_grpo_step(
    cfg: DecoderConfig,
    grpo: GrpoConfig,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    shardings: TrainState,
    temperature: float = 1.0,
    *,
    attention: decoder.Attention = "xla",
    lora: LoraConfig | None = None,
    rollout: bool = False,
) -> GrpoStep:
    """The compiled update `step(state, update, *frozen) -> (state, metrics)`.

    temperature: what the answers were drawn at (> 0). All log-probs are those of that distribution.
    lora: the state's parameters are adapters, and the step takes the frozen parameters as a third argument.
    rollout: the rows carry what the engine said of their tokens (`rollout_logprobs`).
    Without `old_logprobs` the policy is on its own data: the ratio is 1 and nothing is clipped. Metrics (float32
    scalars): loss, grad_norm (before clipping), ratio, clip_fraction (clip_low_fraction, where the ratio fell below
    its bound, and clip_high_fraction, where it rose above), dual_clip_fraction, kl (k3, to the old policy), entropy
    (mean of -log p over the answer tokens: an estimate), with `rollout` rollout_logprob_diff_mean and _max, and the
    counts tokens (of answers) and prompt_tokens.
    Ratio and clip fractions are means over tokens, or over answers where `ratio` is "sequence".
    """
    whole: Any = replicated(mesh)
    rows, frozen_shardings = batch_sharding(mesh, 1), _frozen_shardings(lora)
    sums_shardings: Any = Sums(shardings.params, whole, whole)

    def loss(trained: Any, micro: MicroBatch, *frozen: Any) -> tuple[Array, Metrics]:
        params = attach(frozen[0], trained, lora) if lora else trained
        return policy_loss(grpo, answer_logprobs(params, cfg, grpo, micro, temperature, attention), micro)

    def gradient(sums: Sums, trained: Any, micro: MicroBatch, *frozen: Any) -> Sums:
        (value, metrics), gradients = jax.value_and_grad(loss, has_aux=True)(trained, micro, *frozen)
        gradients = jax.lax.with_sharding_constraint(gradients, shardings.params)
        gradients = jax.tree.map(jnp.add, sums.gradients, gradients)
        return Sums(gradients, sums.loss + value, _combined(sums.metrics, metrics))

    def zeros() -> Sums:
        gradients = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), trained_params(cfg, lora)[0])
        names = LOSS_METRICS + (ROLLOUT_METRICS if rollout else ())
        return Sums(gradients, jnp.zeros(()), dict.fromkeys(names, jnp.zeros(())))

    def apply(state: TrainState, sums: Sums) -> tuple[TrainState, Metrics]:
        state, norm = apply_gradients(optimizer, state, sums.gradients)
        return state, {"loss": sums.loss, "grad_norm": norm, **sums.metrics}

    return GrpoStep(
        mesh,
        jax.jit(zeros, out_shardings=sums_shardings),
        jax.jit(
            gradient,
            in_shardings=(sums_shardings, shardings.params, rows, *frozen_shardings),
            out_shardings=sums_shardings,
            donate_argnums=0,
        ),
        jax.jit(apply, in_shardings=(shardings, sums_shardings), out_shardings=(shardings, whole), donate_argnums=0),
    )


def make_logprob_step(
    cfg: DecoderConfig,
    grpo: GrpoConfig,
    mesh: Mesh,
    param_shardings: decoder.Params,
    temperature: float = 1.0,
    *,
    attention: decoder.Attention = "xla",
    lora: LoraConfig | None = None,
) -> LogprobStep:
    """The compiled `update = step(params, update, *frozen)`: needed where one batch of rollouts feeds several updates.

    `temperature`, `attention` and `lora` are those of the update's step.
    """
    rows = batch_sharding(mesh, 1)

    @partial(jax.jit, in_shardings=(param_shardings, rows, *_frozen_shardings(lora)), out_shardings=rows)
    def logprobs(trained, micro, *frozen):
        params = attach(frozen[0], trained, lora) if lora else trained
        return answer_logprobs(params, cfg, grpo, micro, temperature, attention)

    return LogprobStep(mesh, logprobs)


def trained_params(cfg: DecoderConfig, lora: LoraConfig | None) -> tuple[Any, Any]:
    """Shapes (float32) and logical axes of what is trained: all weights, or adapters."""
    if lora is None:
        return decoder.abstract_params(cfg, jnp.float32), decoder.logical_axes(cfg)
    return jax.eval_shape(lambda: init_adapters(cfg, lora, jax.random.key(0))), adapter_axes(cfg, lora)


def _frozen_shardings(lora: LoraConfig | None) -> tuple[None, ...]:
    """Frozen parameters, where there are any, come as they lie."""
    return (None,) if lora else ()


def grpo_updates(
    step: GrpoStep, logprob_step: LogprobStep, state: TrainState, updates: Sequence[Update], frozen: Any = ()
) -> tuple[TrainState, list[Metrics]]:
    """All updates on one batch of rollouts: one (the paper), or several, each on a part of the prompts.

    With several, every part is weighed against the policy that produced the batch (the state as passed in).
    frozen: the further arguments of the steps.
    """
    if len(updates) > 1:
        updates = [logprob_step(state.params, update, *frozen) for update in updates]
    history = []
    for update in updates:
        state, metrics = step(state, update, *frozen)
        history.append(metrics)
    return state, history


def answer_logprobs(
    params: decoder.Params,
    cfg: DecoderConfig,
    grpo: GrpoConfig,
    micro: MicroBatch,
    temperature: float = 1.0,
    attention: decoder.Attention = "xla",
) -> Float[Array, "rows T"]:
    """log p of every answer token given its prompt and the answer before it, at a temperature; float32; 0 on padding.

    The state of the last prompt token predicts the first answer token.
    """
    params = cast(params, grpo.compute_dtype)
    hidden, _ = decoder.forward(
        params, cfg, micro.tokens, micro.positions, micro.ends,
        remat=grpo.remat, attention=attention,
    )  # fmt: skip
    hidden = jnp.take_along_axis(hidden, micro.sources[..., None], axis=1)
    learnt = micro.token_shares > 0
    logprobs = token_logprobs(params, cfg, hidden, micro.targets, grpo.logprob_chunk, temperature, needed=learnt)
    return jnp.where(learnt, logprobs, 0.0)


LOSS_METRICS = (
    "ratio", "clip_fraction", "clip_low_fraction", "clip_high_fraction", "dual_clip_fraction", "kl", "entropy",
)  # fmt: skip
ROLLOUT_METRICS = ("rollout_logprob_diff_mean", "rollout_logprob_diff_max")
LARGEST = ("rollout_logprob_diff_max",)  # of the parts of an update the largest, where other metrics add up


def policy_loss(
    grpo: GrpoConfig, logprobs: Float[Array, "rows T"], micro: MicroBatch
) -> tuple[Float[Array, ""], Metrics]:
    """This micro-batch's share of the update's loss (Eq. 2 with Clip-Higher and dual clip, negated) and of
    LOSS_METRICS, with `rollout_logprobs` of ROLLOUT_METRICS too. The shares of all micro-batches add up to those of the
    update, but of LARGEST."""
    old = jax.lax.stop_gradient(logprobs) if micro.old_logprobs is None else micro.old_logprobs
    log_ratio = jnp.where(micro.token_shares > 0, logprobs - old, 0.0)
    token_weights = micro.token_shares if grpo.loss_agg == "token-mean" else micro.answer_shares
    if grpo.ratio == "token":
        terms, weights, shares = log_ratio, token_weights, micro.token_shares
    else:  # every token has its answer's term, and all of an answer weigh what one term does
        terms, weights, shares = _answer_sums(log_ratio, micro.answers), micro.answer_shares, micro.answer_shares

    advantages = micro.advantages
    ratio = jnp.exp(jnp.clip(terms, -MAX_LOG_RATIO, MAX_LOG_RATIO))
    plain = -advantages * ratio
    clipped = -advantages * jnp.clip(ratio, 1 - grpo.clip_low, 1 + grpo.clip_high)
    bound = -advantages * grpo.dual_clip
    surrogate = jnp.maximum(plain, clipped)
    capped = (advantages < 0) & (surrogate > bound)
    loss = (weights * jnp.where(capped, bound, surrogate)).sum()

    k3 = jnp.exp(jnp.clip(-log_ratio, -MAX_LOG_RATIO, MAX_LOG_RATIO)) + log_ratio - 1
    if grpo.kl_coefficient:
        loss = loss + grpo.kl_coefficient * (token_weights * k3).sum()
    metrics = {
        "ratio": (shares * ratio).sum(),
        "clip_fraction": (shares * (clipped > plain)).sum(),
        "clip_low_fraction": (shares * ((clipped > plain) & (advantages < 0))).sum(),
        "clip_high_fraction": (shares * ((clipped > plain) & (advantages > 0))).sum(),
        "dual_clip_fraction": (shares * capped).sum(),
        "kl": (micro.token_shares * k3).sum(),
        "entropy": -(micro.token_shares * logprobs).sum(),
    }
    if micro.rollout_logprobs is not None:  # `old` is the policy that made the rollouts, as the trainer computes it
        apart = jnp.where(micro.token_shares > 0, jnp.abs(old - micro.rollout_logprobs), 0.0)
        metrics |= {
            "rollout_logprob_diff_mean": (micro.token_shares * apart).sum(),
            "rollout_logprob_diff_max": apart.max(),
        }
    return loss, jax.tree.map(jax.lax.stop_gradient, metrics)


def _combined(total: Metrics, part: Metrics) -> Metrics:
    return {name: (jnp.maximum if name in LARGEST else jnp.add)(total[name], part[name]) for name in total}


def _answer_sums(values: Float[Array, "rows T"], answers: Int[Array, "rows T"]) -> Float[Array, "rows T"]:
    """The sum over the tokens of its answer, for each token. A part of a group that was cut has whole answers."""

    def row(values: Array, answers: Array) -> Array:
        return jax.ops.segment_sum(values, answers, num_segments=len(values))[answers]

    return jax.vmap(row)(values, answers)
