"""Steps on batches: gradients of one batch in several parts, equal to those of the whole."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from looptool_jax.parallel.mesh import ShardingError
from looptool_jax.parallel.rules import BATCH, batch_sharding, batch_shards

Metrics = dict[str, jax.Array]
AnyArray = Any  # a jax.Array or a NumPy array


@dataclass(frozen=True, eq=False)
class BatchStep:
    """A jitted `function(state, batch, *frozen)` on a mesh, with the rows of the batch over the batch axes.

    frozen: parameters that are not trained, where there are any. rows: what the rows of a batch are, for messages.
    micro_batches: parts that the function cuts them into.
    """

    function: Any
    mesh: Mesh
    rows: str
    micro_batches: int

    def __call__(self, state: Any, batch: Any, *frozen: Any) -> Any:
        """Raises ShardingError where the rows do not divide into micro-batches over the mesh."""
        check_rows(self.rows, len(batch[0]), self.micro_batches, self.mesh)
        with jax.set_mesh(self.mesh):
            return self.function(state, jax.device_put(batch, batch_sharding(self.mesh, 1)), *frozen)

    def lower(self, state: Any, batch: Any, *frozen: Any) -> jax.stages.Lowered:
        """The same for shapes (`jax.ShapeDtypeStruct`) in place of arrays, to be compiled without running it."""
        check_rows(self.rows, batch[0].shape[0], self.micro_batches, self.mesh)
        with jax.set_mesh(self.mesh):
            return self.function.lower(state, batch, *frozen)


def accumulated_gradients(
    loss: Callable[[Any, Any], tuple[jax.Array, Metrics]],
    params: Any,
    batch: Any,
    micro_batches: int,
    shardings: Any,
) -> tuple[Any, jax.Array, Metrics]:
    """Gradients, loss and metrics, each summed over `micro_batches` parts of the batch's leading axis.

    `loss(params, part)` must be a sum over its rows, already divided by a number of the *whole* batch (tokens,
    say): a mean per part would weigh the tokens of a short part more than those of a long one.
    `shardings`: of the parameters, and so of the gradients of every part and of their sum.
    """

    def value_and_grad(params, part):
        (value, metrics), grads = jax.value_and_grad(loss, has_aux=True)(params, part)
        return jax.lax.with_sharding_constraint(grads, shardings), value, metrics

    if micro_batches == 1:
        return value_and_grad(params, batch)

    def add(total, part):
        return jax.tree.map(jnp.add, total, value_and_grad(params, part)), None

    parts = split_rows(batch, micro_batches, jax.tree.leaves(shardings)[0].mesh)
    first = jax.tree.map(lambda x: x[0], parts)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(value_and_grad, params, first))
    return jax.lax.scan(add, zeros, parts)[0]


def split_rows(batch: Any, parts: int, mesh: Mesh) -> Any:
    """[rows, ...] -> [parts, rows / parts, ...]. Row i goes to part i % parts: every device keeps its own rows."""
    sharding = NamedSharding(mesh, PartitionSpec(None, BATCH))

    def split(x):
        x = jnp.swapaxes(x.reshape(x.shape[0] // parts, parts, *x.shape[1:]), 0, 1)
        return jax.lax.with_sharding_constraint(x, sharding)

    return jax.tree.map(split, batch)


def check_rows(what: str, rows: int, micro_batches: int, mesh: Mesh) -> None:
    """Raises ShardingError where `rows` cannot be cut into equal parts that each fill the mesh's batch axes."""
    shards = batch_shards(mesh)
    if rows % (micro_batches * shards):
        raise ShardingError(
            f"{rows} {what} do not divide into {micro_batches} micro-batches over {shards} batch shards "
            f"(mesh {' x '.join(BATCH)}): use a multiple of {micro_batches * shards}"
        )
