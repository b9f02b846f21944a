"""The optimiser, and the training state it advances."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from looptool_jax.limits import above, at_least
from looptool_jax.parallel.rules import TRAINING, param_shardings, placed, replicated


class OptimizerError(ValueError):
    """An optimiser that cannot be built; the message names the setting and what it may be."""


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW. Defaults: the paper's run (verl: constant rate, no warm-up, gradient clip 1.0)."""

    learning_rate: float = 1e-6  # the highest
    schedule: Literal["constant", "cosine"] = "constant"  # of the rate behind the warm-up
    warmup_steps: int = 0  # linear, from zero
    total_steps: int = 0  # cosine only: where the rate reaches zero; 0 is for the caller to replace by its own number
    b1: float = 0.9  # decay of the first moment
    b2: float = 0.999  # decay of the second moment
    eps: float = 1e-8  # beside the root of the second moment
    weight_decay: float = 0.01  # decoupled
    clip_norm: float = 1.0  # longest gradient, over all parameters

    def __post_init__(self) -> None:
        above("train.optimizer.learning_rate", self.learning_rate, 0)
        above("train.optimizer.clip_norm", self.clip_norm, 0)
        at_least("train.optimizer.warmup_steps", self.warmup_steps, 0)
        at_least("train.optimizer.weight_decay", self.weight_decay, 0)
        for name, beta in (("b1", self.b1), ("b2", self.b2)):
            if not 0 <= beta < 1:
                raise OptimizerError(f"train.optimizer.{name}: from 0 to below 1, found {beta}")
        if self.schedule not in ("constant", "cosine"):
            raise OptimizerError(f"train.optimizer.schedule is {self.schedule!r}: use 'constant' or 'cosine'")
        if self.schedule == "cosine" and self.total_steps and self.total_steps <= self.warmup_steps:
            raise OptimizerError(
                f"train.optimizer.total_steps is {self.total_steps}: a cosine schedule needs more steps than its "
                f"{self.warmup_steps} warm-up steps"
            )


class TrainState(NamedTuple):
    """What one update reads and writes: arrays, or in their place their shapes or shardings."""

    params: Any
    opt_state: Any
    step: Any  # updates done, int32 scalar


def learning_rate(cfg: OptimizerConfig) -> optax.Schedule:
    """Learning rate as a function of the number of updates already done. Raises OptimizerError: no `total_steps`."""
    if cfg.schedule == "cosine":
        if not cfg.total_steps:
            raise OptimizerError("train.optimizer.total_steps is 0: a cosine schedule needs the step of its end")
        return optax.warmup_cosine_decay_schedule(
            0.0 if cfg.warmup_steps else cfg.learning_rate, cfg.learning_rate, cfg.warmup_steps, cfg.total_steps
        )
    if cfg.warmup_steps:
        return optax.linear_schedule(0.0, cfg.learning_rate, cfg.warmup_steps)
    return optax.constant_schedule(cfg.learning_rate)


def make_optimizer(cfg: OptimizerConfig) -> optax.GradientTransformation:
    """Clip by global norm, then AdamW with decoupled decay on every parameter, as torch does.

    Raises OptimizerError: a cosine schedule without `total_steps`.
    """
    update = optax.adamw(learning_rate(cfg), b1=cfg.b1, b2=cfg.b2, eps=cfg.eps, weight_decay=cfg.weight_decay)
    return optax.chain(optax.clip_by_global_norm(cfg.clip_norm), update)


def init_state(
    optimizer: optax.GradientTransformation, params: Any, shardings: TrainState, copy: bool = True
) -> TrainState:
    """A fresh state on the mesh: `params` moved to their shardings, optimiser state created in place, step 0.

    copy: a step that donates the state leaves the caller's arrays alive. False: they belong to the state from here on.
    """
    params = jax.device_put(params, shardings.params)
    if copy:
        params = jax.tree.map(jnp.copy, params)
    opt_state = jax.jit(optimizer.init, out_shardings=shardings.opt_state)(params)
    return TrainState(params, opt_state, jax.device_put(jnp.zeros((), jnp.int32), shardings.step))


def state_shardings(
    optimizer: optax.GradientTransformation, abstract_params: Any, of_params: Any, mesh: Mesh
) -> TrainState:
    """Shardings of a TrainState: every moment lies like the parameter it belongs to, the rest is replicated."""
    params = {
        path: (leaf.shape, sharding)
        for (path, leaf), sharding in zip(
            jax.tree.leaves_with_path(abstract_params), jax.tree.leaves(of_params), strict=True
        )
    }

    def place(path, leaf):
        for start in range(len(path)):
            shape, sharding = params.get(path[start:], (None, None))
            if shape == leaf.shape:
                return sharding
        return replicated(mesh)

    opt_state = jax.tree.map_with_path(place, jax.eval_shape(optimizer.init, abstract_params))
    return TrainState(of_params, opt_state, replicated(mesh))


def abstract_state(optimizer: optax.GradientTransformation, abstract_params: Any, shardings: TrainState) -> TrainState:
    """A TrainState of `jax.ShapeDtypeStruct`s with shardings: what a checkpoint is restored into."""
    step = jax.ShapeDtypeStruct((), jnp.int32)
    state = TrainState(abstract_params, jax.eval_shape(optimizer.init, abstract_params), step)
    return placed(state, shardings)


def lay_out(
    optimizer: optax.GradientTransformation, shapes: Any, axes: Any, mesh: Mesh
) -> tuple[TrainState, TrainState]:
    """Shardings of a TrainState for training on the mesh, and its shapes with them.

    Args:
        shapes: of the parameters. axes: a parallel tree of their logical axes.

    Raises:
        ShardingError: a dimension is not divisible by its mesh axis.
    """
    shardings = state_shardings(optimizer, shapes, param_shardings(mesh, axes, shapes, TRAINING), mesh)
    return shardings, abstract_state(optimizer, shapes, shardings)


def apply_gradients(
    optimizer: optax.GradientTransformation, state: TrainState, grads: Any
) -> tuple[TrainState, jax.Array]:
    """One update. Returns the new state and the global norm of `grads` before clipping (float32 scalar)."""
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    norm = optax.tree.norm(grads)
    return TrainState(optax.apply_updates(state.params, updates), opt_state, state.step + 1), norm
