"""Our GRPO update: `shared`, a prompt once with all of its answers, or `repeated`, the prompt before every answer, one
answer in a micro-batch; `repeated-all` has all of them in one, as `shared` has. Behind a colon: another `remat`."""

from __future__ import annotations

import sys

import jax
import numpy as np
import optax
from meter import Meter

from looptool_jax.models import decoder, hf
from looptool_jax.models.config import DecoderConfig
from looptool_jax.parallel.mesh import MeshConfig, make_mesh
from looptool_jax.training.grpo import GrpoConfig, make_grpo_step
from looptool_jax.training.optimizer import OptimizerConfig, init_state, lay_out, make_optimizer
from looptool_jax.training.rows import Group, packed_rows


def main() -> None:
    folder, (variant, _, remat), repeats = sys.argv[1], sys.argv[2].partition(":"), int(sys.argv[3])
    grpo = GrpoConfig(compute_dtype="float32", **({"remat": remat} if remat else {}))
    problem = np.load(f"{folder}/problem.npz")
    prompt, answers, advantages = (problem[name].tolist() for name in ("prompt", "answers", "advantages"))
    step, state, update = build(f"{folder}/model", grpo, variant, prompt, answers, advantages)
    meter = Meter()
    for number in range(repeats + 1):
        meter.start()
        state, metrics = jax.block_until_ready(step(state, update))
        meter.stop()
        if number == 0:
            found = {"loss": float(metrics["loss"]), "grad_norm": float(metrics["grad_norm"])}
            moment = np.asarray(optax.tree.get(state.opt_state, "mu")["layers"]["q"][0])
            np.save(f"{folder}/{variant}{remat}.npy", moment.reshape(len(moment), -1).T)
            meter.warm()
    meter.report(**found, moment=f"{variant}{remat}.npy")


def build(model, grpo, variant, prompt, answers, advantages):
    """The compiled step, its state and the rows of the update."""
    cfg, mesh = DecoderConfig.from_pretrained(model), make_mesh(MeshConfig(), jax.devices()[:1])
    optimizer = make_optimizer(OptimizerConfig())
    shardings, _ = lay_out(optimizer, decoder.abstract_params(cfg), decoder.logical_axes(cfg), mesh)
    params = hf.load_params(model, cfg, np.float32, shardings.params)
    state = init_state(optimizer, params, shardings, copy=False)
    if variant == "shared":
        update = packed_rows([Group(prompt, answers, advantages)], len(prompt) + sum(map(len, answers)), 1)
    else:  # every answer is the group of a prompt of its own
        groups = [Group(prompt, [answer], [advantage]) for answer, advantage in zip(answers, advantages, strict=True)]
        each = 1 if variant == "repeated" else len(answers)
        update = packed_rows(groups, each * (len(prompt) + len(answers[0])), 1)
    return make_grpo_step(cfg, grpo, optimizer, mesh, shardings), state, update


if __name__ == "__main__":
    main()
