"""The policy under training: its state on the mesh, GRPO updates from rollouts, checkpoints, export."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, PRNGKeyArray

from looptool_jax.models import decoder, hf
from looptool_jax.models.config import DecoderConfig, ModelError
from looptool_jax.models.lora import LoraConfig, init_adapters, save_adapters
from looptool_jax.parallel import rules
from looptool_jax.parallel.compilation import compiled_ahead
from looptool_jax.parallel.residents import Resident, Turns
from looptool_jax.parallel.topology import PEAK_FLOPS
from looptool_jax.training import checkpoint
from looptool_jax.training.flops import update_flops
from looptool_jax.training.grpo import (
    LARGEST,
    GrpoConfig,
    compares_rollouts,
    group_advantages,
    grpo_updates,
    make_grpo_step,
    make_logprob_step,
    trained_params,
)
from looptool_jax.training.optimizer import OptimizerConfig, TrainState, init_state, lay_out, make_optimizer
from looptool_jax.training.rows import Group, abstract_rows, alignment, packed_rows

if TYPE_CHECKING:
    from looptool_jax.inference.lm import LanguageModel

COUNTS = ("tokens", "prompt_tokens")  # metrics that add up over the optimiser steps of a batch


class Rollout(Protocol):
    """What the update needs of an answer: the ids that were generated, the end token included, and their log-probs as
    the engine says, at temperature 1."""

    @property
    def tokens(self) -> Sequence[int]: ...

    @property
    def logprobs(self) -> Sequence[float]: ...


class PolicyTrainer:
    """Holds what is trained in a round of GRPO, the float32 master weights or adapters beside frozen weights, and the
    optimiser state.

    Args:
        lm: the policy to start from; its weights are copied.
        checkpoints: folder of this round's checkpoints.
        longest: most tokens of a prompt and of an answer.
        temperature: what the rollouts are drawn at (> 0).
        updates: optimiser steps of a batch of rollouts. With more than one, the ratio is taken against the policy that
            made them.
        lora: train adapters of these sizes, those that `lm` has or fresh ones drawn with `key`. None: all weights.
        offload: master weights and optimiser state wait in pinned host memory while rollouts are made.

    Raises:
        ModelError: `lm` has adapters of other sizes, or int8 weights and no adapters are to be trained.
    """

    def __init__(
        self,
        lm: LanguageModel,
        optimizer: OptimizerConfig,
        grpo: GrpoConfig,
        checkpoints: str,
        longest: tuple[int, int],
        temperature: float,
        updates: int = 1,
        lora: LoraConfig | None = None,
        key: PRNGKeyArray | None = None,
        offload: bool = False,
    ) -> None:
        if lm.int8 and lora is None:
            raise ModelError("policy.dtype: int8 weights cannot be trained; set train.lora, or use bfloat16")
        if lora is not None and lm.adapters is not None and lm.adapters[1] != lora:
            raise ModelError(f"train.lora: {lora} does not fit the policy's adapters: {lm.adapters[1]}")
        self.lm, self.checkpoints, self.updates, self.lora = lm, checkpoints, updates, lora
        align = alignment(lm.attention, grpo.micro_tokens, *longest)
        shards = rules.batch_shards(lm.mesh)
        self._rows = partial(packed_rows, micro_tokens=grpo.micro_tokens, shards=shards, align=align)
        tx = make_optimizer(optimizer)
        self.shardings, self._abstract = lay_out(tx, *trained_params(lm.cfg, lora), lm.mesh)
        placed = self.shardings.params

        def fresh() -> TrainState:
            params = lm.master_params(placed) if lora is None else _adapters(lm, lora, key, placed)
            return init_state(tx, params, self.shardings, copy=False)

        turns = lm.weights.turns if lora is None else Turns()  # adapters are small: they need no turn
        self._state = Resident(fresh, turns, stays=not offload)
        self._rollouts: LanguageModel | None = None
        how: dict[str, Any] = {"attention": lm.attention, "lora": lora}
        self._compared, self._compute_dtype = compares_rollouts(temperature), grpo.compute_dtype
        self._step = make_grpo_step(
            lm.cfg, grpo, tx, lm.mesh, self.shardings, temperature, rollout=self._compared, **how
        )
        self._logprobs = make_logprob_step(lm.cfg, grpo, lm.mesh, placed, temperature, **how)
        self._micro = abstract_rows(shards, grpo.micro_tokens, old=updates > 1, rollout=self._compared)
        self._compiling: list[Future[jax.stages.Compiled]] | None = None  # None: not yet begun
        self._to_decoding = make_resharding(lm.cfg, lm.mesh, placed, lm.dtype)

    @property
    def state(self) -> TrainState:
        return self._state.get()

    def policy(self) -> LanguageModel:
        """The model with the present weights, for rollouts. The next update consumes them.

        While the first are made, the programs of an update on them are compiled.
        """
        if self._compiling is None:
            frozen = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), self._frozen())
            gradient = partial(self._step.lower_gradient, self._abstract.params, self._micro, *frozen)
            apply = partial(self._step.lower_apply, self._abstract)
            self._compiling = [compiled_ahead(gradient), compiled_ahead(apply)]
        if self.lora is not None:
            return self.lm.with_adapters(self.state.params, self.lora)
        weights = Resident(self._to_decoding(self.state.params), self.lm.weights.turns)
        self._rollouts = replace(self.lm, weights=weights, adapters=None)
        return self._rollouts

    def update(
        self,
        prompts: Sequence[Sequence[int]],
        groups: Sequence[Sequence[Rollout]],
        rewards: Float[np.ndarray, "n group"],
    ) -> dict[str, float]:
        """The optimiser steps of one batch of rollouts; returns the mean of their metrics, of COUNTS the sum, of
        LARGEST the largest."""
        whole = [
            Group(
                prompt, [answer.tokens for answer in group], advantages,
                [answer.logprobs for answer in group] if self._compared else None,
            )
            for prompt, group, advantages in zip(prompts, groups, group_advantages(rewards).tolist(), strict=True)
        ]  # fmt: skip
        size = len(whole) // self.updates
        parts = [self._rows(whole[start : start + size]) for start in range(0, len(whole), size)]
        if self._rollouts is not None:
            self._rollouts.weights.drop()
        if self._compiling:
            gradient, apply = (program.result() for program in self._compiling)
            self._step, self._compiling = replace(self._step, gradient=gradient, apply=apply), []
        state, history = grpo_updates(self._step, self._logprobs, self.state, parts, self._frozen())
        self._state.set(state)
        history = jax.device_get(history)
        columns = {name: [metrics[name] for metrics in history] for name in history[0]}
        reduced = dict.fromkeys(COUNTS, np.sum) | dict.fromkeys(LARGEST, np.max)
        return {name: round(float(reduced.get(name, np.mean)(column)), 8) for name, column in columns.items()}

    def share_of_peak(
        self, prompts: Sequence[Sequence[int]], groups: Sequence[Sequence[Rollout]], seconds: float
    ) -> float | None:
        """Model FLOPs utilisation (MFU) of an update that took so long; None where the peak of these devices in the
        dtype that the update computes in is not known."""
        peak = PEAK_FLOPS.get(self.lm.mesh.devices.flat[0].device_kind)
        if peak is None or self._compute_dtype != "bfloat16":
            return None
        flops = sum(
            update_flops(self.lm.cfg, len(prompt), [len(answer.tokens) for answer in group], self.lora is not None)
            for prompt, group in zip(prompts, groups, strict=True)
        )
        return flops / (seconds * peak * self.lm.mesh.size)

    def _frozen(self) -> tuple[Any, ...]:
        """The weights that adapters are trained beside."""
        return () if self.lora is None else (self.lm.weights.get(),)

    def save(self, step: int) -> None:
        """Checkpoint after `step` batches; earlier ones are removed."""
        checkpoint.save(checkpoint.step_path(self.checkpoints, step), self.state, {"step": step}, keep=1)

    def restore(self) -> int:
        """Load the newest checkpoint and return its step; 0 where there is none. Raises CheckpointError."""
        path = checkpoint.latest(self.checkpoints)
        if path is None:
            return 0
        if self.lora is None and self.lm.weights.can_be_made:
            self.lm.weights.drop()
        restored: list[checkpoint.Restored] = []

        def read() -> TrainState:
            restored.append(checkpoint.restore(path, self._abstract))
            return restored[0].state

        self._state.renew(read)
        return restored[0].extra["step"]

    def export(self, folder: str) -> None:
        """Write the float32 weights in Hugging Face's layout, with the tokenizer and chat template of the starting
        policy; or the adapters alone in PEFT's."""
        if self.lora is not None:
            save_adapters(self.state.params, self.lora, folder, self.lm.name)
        else:
            hf.save_pretrained(self.state.params, self.lm.cfg, folder, self.lm.folder)


def make_resharding(cfg: DecoderConfig, mesh: Mesh, placed: decoder.Params, dtype: str) -> Any:
    """The compiled copy of master weights, which lie as `placed` says, into weights for decoding."""
    axes, shapes = decoder.logical_axes(cfg), decoder.abstract_params(cfg)
    decoding = rules.param_shardings(mesh, axes, shapes, rules.DECODING)

    @partial(jax.jit, in_shardings=(placed,), out_shardings=decoding)
    def copied(params):
        return jax.tree.map(lambda x: jnp.array(x, dtype, copy=True), params)

    return copied


def _adapters(lm: LanguageModel, lora: LoraConfig, key: PRNGKeyArray | None, placed: Any) -> Any:
    if lm.adapters is None:
        if key is None:
            raise ValueError("fresh adapters need a key")
        return jax.jit(partial(init_adapters, lm.cfg, lora), out_shardings=placed)(key)
    adapters, _ = lm.adapters
    return jax.tree.map(lambda x: jnp.array(x, jnp.float32, copy=True), jax.device_put(adapters, placed))
