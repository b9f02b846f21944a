"""What sharing the prompt saves a training step of the paper's size, compiled for a TPU slice that is not there.

    python benchmarks/compile.py [--config paper_8b] [--slice v5e:8x8]

The gradient of one longest prompt with all of its answers on every batch shard, and of the same answers behind a copy
of the prompt each: bytes by the compiler's own accounting, FLOPs counted from shapes (the compiler counts the body of a
scan once). Needs the tpu extra, no TPU.
"""

from __future__ import annotations

import argparse

import jax
from peers.alternate import table

from looptool_jax.config import load_config
from looptool_jax.loop.phases import phases
from looptool_jax.loop.preflight import compile_phase
from looptool_jax.loop.run_config import RunConfig
from looptool_jax.models.presets import PRESETS
from looptool_jax.parallel.topology import available_hbm, parse
from looptool_jax.training.flops import forward_flops


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="paper_8b")
    parser.add_argument("--slice", default="v5e:8x8")
    args = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    shared = load_config(args.config)
    prompt, answer, group = sizes(shared)
    repeated = load_config(
        args.config,
        ["train.group=1", f"train.batch={shared.train.batch * group}",
         f"train.grpo.micro_tokens={group * (prompt + answer)}"],
    )  # fmt: skip
    model = PRESETS[shared.policy.path]
    flops = {
        "shared": forward_flops(model, prompt, [answer] * group),
        "repeated": group * forward_flops(model, prompt, [answer]),
    }
    devices = parse(args.slice).devices()
    limit = available_hbm(devices[0])
    rows = []
    for name, cfg in (("shared", shared), ("repeated", repeated)):
        phase = next(phase for phase in phases(cfg, devices) if phase.name == "GRPO gradient")
        report = compile_phase(phase, limit)
        rows.append([
            name, f"{report.temporaries / 2**30:.2f}", f"{report.total / 2**30:.2f}", "yes" if report.fits else "no",
            f"{flops[name] / 1e15:.2f}", f"{flops[name] / flops['shared']:.2f}", f"{report.seconds:.0f}",
        ])  # fmt: skip
    print(
        f"{args.config} on {args.slice}: prompts of {prompt}, {group} answers of {answer} tokens, one prompt a shard\n"
    )
    head = ["prompt", "temporaries, GiB a chip", "all, GiB", "fits", "forward PFLOP a prompt", "ratio", "compiled in s"]
    print(table(head, rows))


def sizes(cfg: RunConfig) -> tuple[int, int, int]:
    return cfg.train.answers.prompt_tokens, cfg.train.answers.answer_tokens, cfg.train.group


if __name__ == "__main__":
    main()
