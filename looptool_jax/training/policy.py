"""The policy under training: its state on the mesh, GRPO updates from rollouts, checkpoints, export."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from looptool_jax.models import decoder, hf
from looptool_jax.parallel import rules
from looptool_jax.training import checkpoint
from looptool_jax.training.grpo import (
    GrpoConfig,
    group_advantages,
    grpo_update,
    make_batch,
    make_grpo_step,
    make_logprob_step,
)
from looptool_jax.training.optimizer import OptimizerConfig, TrainState, init_state, make_optimizer, state_shardings

if TYPE_CHECKING:
    from looptool_jax.inference.lm import LanguageModel

SMALLEST_BUCKET = 32
COUNTS = ("tokens", "prompt_tokens")  # metrics that add up over the optimiser steps of a batch


class Rollout(Protocol):
    """What the update needs of an answer: the ids that were generated, the end token included."""

    @property
    def tokens(self) -> Sequence[int]: ...


class PolicyTrainer:
    """Holds the master weights (float32) and the optimiser state of one round of GRPO.

    Args:
        lm: the policy to start from; its weights are copied.
        checkpoints: folder of this round's checkpoints.
        longest: most tokens of a prompt and of an answer; batches are padded to a power of two or to this.
        temperature: what the rollouts are drawn at (> 0).
    """

    def __init__(
        self,
        lm: LanguageModel,
        optimizer: OptimizerConfig,
        grpo: GrpoConfig,
        checkpoints: str,
        longest: tuple[int, int],
        temperature: float,
    ) -> None:
        self.lm, self.checkpoints, self.longest = lm, checkpoints, longest
        axes = decoder.logical_axes(lm.cfg)
        abstract = decoder.abstract_params(lm.cfg, jnp.float32)
        tx = make_optimizer(optimizer)
        placed = rules.param_shardings(lm.mesh, axes, abstract, rules.TRAINING)
        self.shardings = state_shardings(tx, abstract, placed, lm.mesh)
        # Split first: the float32 copy of weights that lie whole on every device might not fit.
        master = jax.tree.map(lambda x: x.astype(jnp.float32), jax.device_put(lm.params, placed))
        self.state: TrainState = init_state(tx, master, self.shardings)
        self._step = make_grpo_step(lm.cfg, grpo, tx, lm.mesh, self.shardings, temperature)
        self._logprobs = make_logprob_step(lm.cfg, grpo, lm.mesh, self.shardings.params, temperature)

    @property
    def params(self) -> decoder.Params:
        """The present weights in the policy's own dtype. The next update consumes them."""
        dtype = self.lm.params["embedding"].dtype
        return jax.tree.map(lambda x: x.astype(dtype), self.state.params)

    def update(
        self,
        prompts: Sequence[Sequence[int]],
        groups: Sequence[Sequence[Rollout]],
        rewards: Float[np.ndarray, "n group"],
        updates: int = 1,
    ) -> dict[str, float]:
        """One batch of rollouts, in `updates` optimiser steps; returns the mean of their metrics, of COUNTS the sum.

        With more than one, the ratio is taken against the policy that made the rollouts.
        """
        answers = [[answer.tokens for answer in group] for group in groups]
        batch = make_batch(
            prompts, answers, group_advantages(rewards),
            prompt_len=_bucket(max(len(prompt) for prompt in prompts), self.longest[0]),
            answer_len=_bucket(max(len(answer) for group in answers for answer in group), self.longest[1]),
            pad_id=self.lm.tokenizer.pad_id,
        )  # fmt: skip
        self.state, history = grpo_update(self._step, self._logprobs, self.state, batch, updates)
        history = jax.device_get(history)
        columns = {name: [metrics[name] for metrics in history] for name in history[0]}
        return {
            name: round(float(np.sum(column) if name in COUNTS else np.mean(column)), 8)
            for name, column in columns.items()
        }

    def save(self, step: int) -> None:
        """Checkpoint after `step` batches; earlier ones are removed."""
        checkpoint.save(checkpoint.step_path(self.checkpoints, step), self.state, {"step": step}, keep=1)

    def restore(self) -> int:
        """Load the newest checkpoint and return its step; 0 where there is none. Raises CheckpointError."""
        path = checkpoint.latest(self.checkpoints)
        if path is None:
            return 0
        abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), self.state)
        restored = checkpoint.restore(path, abstract)
        self.state = restored.state
        return restored.extra["step"]

    def export(self, folder: str) -> None:
        """Write the weights in Hugging Face's layout, with the tokenizer and chat template of the starting policy."""
        hf.save_pretrained(self.params, self.lm.cfg, folder, self.lm.folder)


def _bucket(length: int, longest: int) -> int:
    """The next power of two, so that few shapes are compiled, or the limit."""
    return min(longest, max(SMALLEST_BUCKET, 1 << (length - 1).bit_length()))
