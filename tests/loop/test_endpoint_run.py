"""A `micro` run whose judge and generator are behind a server, killed and resumed; the embedded judge replies there."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import pytest

from looptool_jax.data.store import read_jsonl
from looptool_jax.inference.answers import AnswerConfig, Answerer, ChatRequest
from looptool_jax.inference.lm import ModelConfig, load_language_model
from looptool_jax.loop.ledger import Ledger
from looptool_jax.loop.pool import locate
from looptool_jax.parallel.mesh import MeshConfig, make_mesh
from looptool_jax.toolcall import Message

MAIN = "from looptool_jax.cli import main; main()"
KEY = "sk-of-this-test"
PROMPT_TOKENS = 640


class Replies:
    """What nano/judge replies to request bodies, many at a time."""

    def __init__(self) -> None:
        cfg = ModelConfig(locate("nano/judge"), "qwen3", "float32")
        self.model = Answerer(load_language_model(cfg, make_mesh(MeshConfig(), jax.devices()[:1])))
        self.waiting: queue.Queue = queue.Queue()
        threading.Thread(target=self.work, daemon=True).start()

    def __call__(self, body: dict):
        messages = [Message(message["role"], message["content"]) for message in body["messages"]]
        if len(self.model.lm.tokenizer.encode_prompt(messages, (), False)) > PROMPT_TOKENS:
            return 400, {"message": "the request exceeds the available context size", "code": 400}
        reply: queue.Queue = queue.Queue()
        self.waiting.put((body, ChatRequest("", messages, (body["seed"] << 1, 0)), reply))
        return reply.get(timeout=300)

    def work(self) -> None:
        while True:
            batch = [self.waiting.get()]
            time.sleep(0.05)
            while not self.waiting.empty():
                batch.append(self.waiting.get())
            for body in {json.dumps(how(body)): body for body, *_ in batch}.values():
                alike = [one for one in batch if how(one[0]) == how(body)]
                sizes = AnswerConfig(PROMPT_TOKENS, body["max_tokens"], slots=8)
                requests = [request for _, request, _ in alike]
                answers = self.model.chat(requests, sizes, lambda tokens: None, **how(body))
                for (_, _, reply), answer in zip(alike, answers, strict=True):
                    reply.put(answer.text)


def how(body: dict) -> dict:
    return {"temperature": body["temperature"], "top_p": body["top_p"], "top_k": body.get("top_k", 0)}


def start(run_dir: Path, url: str) -> subprocess.Popen[str]:
    endpoint = f"{{url: {url}, model: nano, api_key_env: NANO_API_KEY, concurrency: 8}}"
    settings = (
        f"run_dir={run_dir}", "rounds=1", "data.heldout=0", f"judge_model={{path: null, endpoint: {endpoint}}}",
        "judge.confirm=false", "expand.verify=rules",
    )  # fmt: skip
    flags = "--xla_backend_optimization_level=0"
    env = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "NANO_API_KEY": KEY}
    command = [sys.executable, "-c", MAIN, "run", "--config", "micro", *settings]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)


@pytest.mark.timeout(600)
def test_a_micro_run_asks_a_server_and_pays_for_nothing_twice(chat_server, tmp_path):
    server, run_dir = chat_server(Replies()), tmp_path / "run"
    server.hold_after = 3
    process = start(run_dir, server.url)
    while len(list((run_dir / "replies").glob("*.json"))) < 3:
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.kill()
    out, err = process.communicate()
    kept = {file: file.read_bytes() for file in (run_dir / "replies").iterdir()}
    server.release()
    process = start(run_dir, server.url)
    for text in process.communicate():
        out += text
    assert process.returncode == 0, out
    assert len(kept) == 3 and all(file.read_bytes() == data for file, data in kept.items())

    asked = [json.dumps(body) for body in server.bodies]
    held = len(asked) - len(set(asked))
    assert 0 < held <= 8, "only what was on its way when the process died is asked again"
    stages = json.loads((run_dir / "manifest.json").read_text())["stages"]
    judged, expanded = stages["round-1/judge"]["metrics"], stages["round-1/expand"]["metrics"]
    served = f"nano at {server.url}"
    assert judged["judge_model"] == expanded["generator_model"] == served and "judge_model" not in expanded
    assert judged["judged"] > 0 and judged["agreement"] > 0 and expanded["accepted"] > 0
    assert len(set(asked)) == 2 * judged["judged"] + expanded["generated"]
    replies = [row["text"] for file in (run_dir / "replies").iterdir() for row in read_jsonl(file)]
    judgements = list(read_jsonl(run_dir / "round-1/judge/judgements.jsonl"))
    asked_about = [row for row in judgements if row["decided_by"] == "judge"]
    assert all(any(row["analysis"] in text for text in replies) for row in asked_about)
    assert Ledger(f"{run_dir}/ledger.jsonl").costs()["round-1/expand"].tokens > 0
    assert set(server.authorizations) == {f"Bearer {KEY}"}
    files = [file for file in run_dir.rglob("*") if file.is_file()]
    assert KEY not in out + err and not [file for file in files if KEY.encode() in file.read_bytes()]
