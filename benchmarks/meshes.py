"""How far a mesh of eight devices is from one device, on the embedded policy and real rollouts, in float32.

    python benchmarks/meshes.py [--samples 128] [--steps 4]

Per mesh shape: the gradient of one GRPO batch; how far parameters have moved after several steps at a large learning
rate; and greedy answers on frozen weights: how many differ, and by how much the two best tokens were apart where they
first do.
"""

import argparse
import os

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import jax.numpy as jnp
import numpy as np
import optax

from looptool_jax.inference.answers import AnswerConfig, Answerer
from looptool_jax.inference.lm import ModelConfig, load_language_model
from looptool_jax.loop.keys import key_for
from looptool_jax.loop.pool import locate
from looptool_jax.models import decoder
from looptool_jax.parallel.mesh import MeshConfig, make_mesh
from looptool_jax.parallel.rules import batch_shards
from looptool_jax.toolcall import match
from looptool_jax.training.grpo import GrpoConfig, group_advantages, make_grpo_step
from looptool_jax.training.optimizer import OptimizerConfig, init_state, lay_out, make_optimizer
from looptool_jax.training.rows import Group, packed_rows
from looptool_jax.world import generate

MESHES = {
    "fsdp 8": MeshConfig(1, 8, 1),
    "data 8": MeshConfig(8, 1, 1),
    "data 2 x fsdp 2 x tensor 2": MeshConfig(2, 2, 2),
    "fsdp 4 x tensor 2": MeshConfig(1, 4, 2),
}
SIZES = AnswerConfig(prompt_tokens=384, answer_tokens=112, slots=16)
GRPO = GrpoConfig(compute_dtype="float32", micro_tokens=2048)
RATE = 1e-2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=128, help="answered greedily")
    parser.add_argument("--steps", type=int, default=4)
    args = parser.parse_args()
    cfg = ModelConfig(locate("nano/policy", ""), "qwen3", "float32")
    one = load_language_model(cfg, make_mesh(MeshConfig(), jax.devices()[:1]))
    samples = [s for s in generate("heldout", 2 * args.samples, 77) if Answerer(one).prompt_length(s) <= 384]
    samples = samples[: args.samples]
    batches = [rollouts(one, samples[8 * i : 8 * i + 8], i) for i in range(args.steps)]
    greedy = answers(one, samples)
    gradient, moved = trained(one, batches[:1], recorder()), trained(one, batches, adamw())
    print("| mesh | gradient | parameters moved | greedy answers that differ | tokens until then | apart |")
    print("|---|---|---|---|---|---|")
    for name, mesh in MESHES.items():
        lm = load_language_model(cfg, make_mesh(mesh))
        others = answers(lm, samples)
        differ = [(a, b) for a, b in zip(greedy, others, strict=True) if a.tokens != b.tokens]
        gaps = [abs(a.logprobs[at] - b.logprobs[at]) for a, b in differ if (at := first_difference(a, b)) >= 0]
        print(
            f"| {name} | {error(trained(lm, batches[:1], recorder()), gradient):.1e} "
            f"| {error(trained(lm, batches, adamw()), moved):.1e} | {len(differ)} of {len(samples)} "
            f"| {sum(len(a.tokens) for a in greedy)} | {f'{max(gaps):.1e}' if gaps else '-'} |",
            flush=True,
        )


def rollouts(lm, samples, number):
    keys = [key_for("meshes", number, sample.id) for sample in samples]
    groups = Answerer(lm).groups(samples, 8, keys, 1.0, SIZES, lambda tokens: None)
    rewards = [[float(match(a.text, s.target, s.tools).ok) for a in g] for s, g in zip(samples, groups, strict=True)]
    prompts = [Answerer(lm).prompt(sample) for sample in samples]
    advantages = group_advantages(np.array(rewards) + np.eye(8))  # no group without a direction
    return [
        Group(prompt, [answer.tokens for answer in group], row.tolist())
        for prompt, group, row in zip(prompts, groups, advantages, strict=True)
    ]


def answers(lm, samples):
    return Answerer(lm).greedy(samples, SIZES, lambda tokens: None)


def first_difference(a, b) -> int:
    return next((i for i, (x, y) in enumerate(zip(a.tokens, b.tokens, strict=False)) if x != y), -1)


def recorder() -> optax.GradientTransformation:
    """Keeps the gradient as its state and moves nothing."""
    zeros = optax.tree.zeros_like
    return optax.GradientTransformation(zeros, lambda gradient, _, params: (zeros(params), gradient))


def adamw() -> optax.GradientTransformation:
    return make_optimizer(OptimizerConfig(learning_rate=RATE))


def trained(lm, batches, optimizer):
    """The recorded gradient, or how far the parameters have moved, as NumPy arrays."""
    shapes, axes = decoder.abstract_params(lm.cfg), decoder.logical_axes(lm.cfg)
    shardings, _ = lay_out(optimizer, shapes, axes, lm.mesh)
    start = lm.master_params(shardings.params)
    before = jax.device_get(start)
    state = init_state(optimizer, start, shardings, copy=False)
    step = make_grpo_step(lm.cfg, GRPO, optimizer, lm.mesh, shardings)
    for groups in batches:
        state, _ = step(state, packed_rows(groups, GRPO.micro_tokens, batch_shards(lm.mesh)))
    after = jax.device_get(state.params)
    moved = jax.tree.map(np.subtract, after, before)
    return moved if any(np.any(leaf) for leaf in jax.tree.leaves(moved)) else jax.device_get(state.opt_state)


def error(found, expected) -> float:
    """The norm of the difference over the norm."""
    difference = jax.tree.map(lambda a, b: np.asarray(a, np.float64) - b, found, expected)
    return float(jnp.sqrt(square(difference) / square(expected)))


def square(tree) -> float:
    return sum(float(np.sum(np.asarray(leaf, np.float64) ** 2)) for leaf in jax.tree.leaves(tree))


if __name__ == "__main__":
    main()
