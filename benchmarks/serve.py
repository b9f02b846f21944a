"""Requests a second of `looptool serve`: the embedded policy, chats with tools, whole replies.

    python benchmarks/serve.py [--requests 200] [--at-once 32]

The server is a process of its own at a free port; the clients share the machine with it. One round goes before.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import sys
import time
from typing import Any

import aiohttp

from looptool_jax.toolcall.formats.base import tool_json
from looptool_jax.world import generate

MAIN = "from looptool_jax.cli import main; main()"


def bodies(count: int) -> list[dict[str, Any]]:
    """First turns of samples with their tools."""
    samples = [sample for sample in generate("heldout", 4 * count, 9) if len(sample.messages) == 1][:count]
    return [
        {
            "model": "nano/policy",
            "messages": [{"role": "user", "content": sample.messages[0].content}],
            "tools": [tool_json(tool) for tool in sample.tools],
            "temperature": 0,
        }
        for sample in samples
    ]


async def ask_all(url: str, asked: list[dict[str, Any]], at_once: int) -> tuple[float, int, list[float]]:
    """Seconds, generated tokens, and the seconds of every request."""
    waiting, seconds, tokens = iter(asked), [], 0

    async def work(session: aiohttp.ClientSession) -> None:
        nonlocal tokens
        for body in waiting:
            started = time.perf_counter()
            async with session.post(f"{url}/chat/completions", json=body) as answer:
                reply = await answer.json()
            assert answer.status == 200, reply
            seconds.append(time.perf_counter() - started)
            tokens += reply["usage"]["completion_tokens"]

    async with aiohttp.ClientSession() as session:
        started = time.perf_counter()
        await asyncio.gather(*(work(session) for _ in range(at_once)))
        return time.perf_counter() - started, tokens, sorted(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--at-once", type=int, default=32)
    args = parser.parse_args()
    command = [sys.executable, "-c", MAIN, "serve", "--port", "0"]
    started = time.perf_counter()
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "JAX_PLATFORMS": "cpu"})
    try:
        assert server.stdout is not None
        url = server.stdout.readline().split(" at ")[1].strip()
        print(f"ready after {time.perf_counter() - started:.1f} s")
        asked = bodies(args.requests)
        asyncio.run(ask_all(url, asked[: args.at_once], args.at_once))
        for at_once in (1, args.at_once):
            took, tokens, each = asyncio.run(ask_all(url, asked, at_once))
            middle, late = each[len(each) // 2], each[int(0.95 * len(each))]
            print(
                f"{at_once} at once: {len(each) / took:.1f} requests/s, {tokens / took:.0f} tokens/s, "
                f"median {1000 * middle:.0f} ms, 95 % within {1000 * late:.0f} ms"
            )
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    main()
