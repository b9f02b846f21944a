"""Serve token requests through JetStream's own Driver; run as a process of its own by test_driver.py.

A thread of the Driver that fails kills its process.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from jetstream.core.proto import jetstream_pb2

sys.path.insert(0, str(Path(__file__).parent))
from conftest import CFG, EOS, PAD, make_params

from looptool_jax.inference.batch import Request, generate
from looptool_jax.inference.engine import DecoderEngine
from looptool_jax.inference.serving.grpc_server import load_orchestrator

orchestrator = load_orchestrator()


async def decode(servicer, prompt: list[int], max_tokens: int) -> list[list[int]]:
    request = jetstream_pb2.DecodeRequest(
        token_content=jetstream_pb2.DecodeRequest.TokenContent(token_ids=prompt), max_tokens=max_tokens
    )
    rows: list[list[int]] = [[], []]
    async for response in servicer.Decode(request):
        for row, piece in zip(rows, response.stream_content.samples, strict=True):
            row.extend(piece.token_ids)
    return rows


async def decode_all(driver, requests: list[Request]) -> list[list[list[int]]]:
    """The Driver's threads still close their channels behind the last token, and need the event loop for it."""
    servicer = orchestrator.LLMOrchestrator(driver)
    served = await asyncio.gather(*(decode(servicer, list(each.tokens), each.max_new) for each in requests))
    await asyncio.to_thread(driver.stop)
    return served


def main() -> None:
    engine = DecoderEngine(
        CFG, slots=2, group=2, prompt_len=32, answer_len=12, steps_per_sync=4, eos_ids=EOS, pad_id=PAD
    )
    params = engine.load_params(make_params(0))
    lengths = (1, 16, 32, 7, 22)
    requests = [
        Request(str(i), [6 + (7 * i + j) % 42 for j in range(n)], (0, 0), 0.0, 12) for i, n in enumerate(lengths)
    ]
    driver = orchestrator.Driver([engine], [engine], [params], [params], interleaved_mode=True)
    served = asyncio.run(decode_all(driver, requests))
    for group, completions in zip(served, generate(engine, params, requests), strict=True):
        for row, completion in zip(group, completions, strict=True):
            assert row == [token for token in completion.tokens if token not in EOS], (row, completion)
    print("served", sum(len(row) for group in served for row in group), "tokens")


if __name__ == "__main__":
    main()
