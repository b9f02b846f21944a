"""JetStream's gRPC service, by its own orchestrator and Driver, over the engine: greedy answers in token ids.

A thread of JetStream 0.2.2's Driver that fails kills the process, so what it would fail on is refused before it. It
counts an answer's length once a device sync, so its engine decodes one step a sync. Its service has no TLS and no key.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any

import grpc
import jax

from looptool_jax.inference.answers import AnswerConfig
from looptool_jax.inference.batch import Request, RequestError, check
from looptool_jax.inference.lm import LanguageModel
from looptool_jax.inference.serving.server import ServeConfig, ServeError

if TYPE_CHECKING:
    from looptool_jax.inference.engine import DecoderEngine


LONGEST = 32_767  # tokens of a prompt that JetStream pads to


def serve_grpc(lm: LanguageModel, name: str, sizes: AnswerConfig, cfg: ServeConfig, say: Callable[[str], None]) -> None:
    """Serve until a signal ends it; requests that are here then end first. Raises ServeError, EngineError."""
    if sizes.prompt_tokens > LONGEST:
        raise ServeError(f"--grpc: JetStream takes prompts of up to {LONGEST} tokens; lower prompt_tokens")
    engine = lm.engine(
        slots=sizes.slots, prompt_len=sizes.prompt_tokens, answer_len=sizes.answer_tokens, steps_per_sync=1
    )
    asyncio.run(_serve(engine, lm.params, name, cfg, say))


def load_orchestrator() -> Any:
    """JetStream's orchestrator as it works with this JAX, without the log handler that its import installs."""
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    from jetstream.core import orchestrator

    root.setLevel(level)
    root.handlers[:] = handlers
    orchestrator.delete_pytree = _delete
    return orchestrator


def _delete(tree: Any) -> None:
    """JetStream 0.2.2 calls `jax.tree_map` here, which JAX no longer has."""
    jax.tree.map(lambda leaf: leaf.delete() if isinstance(leaf, jax.Array) else None, tree)


async def _serve(engine: DecoderEngine, params: Any, name: str, cfg: ServeConfig, say: Callable[[str], None]) -> None:
    orchestrator = load_orchestrator()
    from jetstream.core.proto import jetstream_pb2_grpc

    params = engine.load_params(params)
    ended, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    driver = orchestrator.Driver([engine], [engine], [params], [params], interleaved_mode=True)
    server = grpc.aio.server(maximum_concurrent_rpcs=engine.slots + cfg.waiting)
    service = _guarded(orchestrator, engine)(driver)
    jetstream_pb2_grpc.add_OrchestratorServicer_to_server(service, server)
    try:
        port = server.add_insecure_port(f"{cfg.host}:{cfg.port}")
    except RuntimeError:
        port = 0
    try:
        if not port:
            raise ServeError(f"--port: cannot listen at {cfg.host}:{cfg.port}; is it in use?")
        await server.start()
        say(f"{name} for JetStream's clients at {cfg.host}:{port}")
        await ended.wait()
    finally:
        await server.stop(grace=None if not port else 600.0)
        await asyncio.to_thread(driver.stop)  # its threads still close channels, which needs this event loop


def _guarded(orchestrator: Any, engine: DecoderEngine) -> type:
    class Guarded(orchestrator.LLMOrchestrator):  # type: ignore[name-defined, misc]
        """Refuses what the Driver would die of."""

        async def Decode(self, request: Any, context: Any) -> AsyncIterator[Any]:
            if request.WhichOneof("content") != "token_content" or request.session_cache:
                reason = "send token_content alone: this service takes token ids, and keeps no sessions"
                await context.abort(grpc.StatusCode.INVALID_ARGUMENT, reason)
            try:
                ids = list(request.token_content.token_ids)
                check(engine, Request("request", ids, (0, 0), 0.0, request.max_tokens))
            except RequestError as error:
                await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error).partition(": ")[2])
            async for response in super().Decode(request, context):
                yield response

    return Guarded
