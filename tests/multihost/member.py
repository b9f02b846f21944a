"""A small process of a run without models: `member.py MODE INDEX COUNT ADDRESS [FOLDER]`, through `cli.main`."""

import os
import signal
import sys
import time

from looptool_jax import cli
from looptool_jax.data.files import DataError, write_text
from looptool_jax.inference.answers import Answer, AnswerConfig, ChatRequest
from looptool_jax.inference.endpoint import EndpointChatModel
from looptool_jax.inference.lm import EndpointConfig
from looptool_jax.loop.console import Console
from looptool_jax.loop.synthesis import trees
from looptool_jax.loop.synthesis.config import SynthesisConfig
from looptool_jax.parallel import processes
from looptool_jax.parallel.processes import first_says, is_first, joined, meet
from looptool_jax.toolcall import Message


def member() -> None:
    mode, index, count, address, *folder = sys.argv[1:]
    me = int(index)
    limit = 3 if mode == "alone" else 300
    with joined(address, int(count), me, limit):
        MODES[mode](me, *folder)


def fine(me: int) -> None:
    for step in range(20):
        meet("step", step)
    assert first_says(f"from {me}") == "from 0"
    processes.by_first(lambda: time.sleep(0.5))
    if is_first():
        print("done")


def differ(me: int) -> None:
    meet("the colour", me // 2)


def fail(me: int) -> None:
    if me == 0:
        raise DataError("the disk is full")
    meet("what comes after")


def shared(me: int, folder: str) -> None:
    processes.SHARED_SECONDS = 0.5
    write_text(f"{folder}/mine", str(me))
    processes.check_shared(folder)


def preempted(me: int) -> None:
    for step in range(1000):
        if me == 1 and step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.05 * (me + 1))
        if processes.preempted():
            print(step)
            raise processes.Preempted


def served(me: int, url: str, folder: str) -> None:
    model = EndpointChatModel(EndpointConfig(url, "m", tries=1), folder)
    requests = [ChatRequest(str(i), (Message("user", f"question {i}"),)) for i in range(20)]
    print([answer.text for answer in model.chat(requests, AnswerConfig(), lambda tokens: None)])


class TreeWriter:
    def chat(self, requests: list[ChatRequest], *_: object, **__: object) -> list[Answer]:
        replies = '{"Trains": ["Delay Lookup"]}', '{"naming": {"short": "Be brief."}}'
        return [Answer(replies["constraints" in request.id], [], [], "stop") for request in requests]


def drafted(me: int, folder: str) -> None:
    if me == 0:
        write = trees.write_text
        trees.write_text = lambda *file: time.sleep(0.5) or write(*file)
    metrics = trees.draft_trees(TreeWriter(), "Rail", 0, SynthesisConfig(drafts=1), folder, Console(quiet=True))
    if me == 0:
        print(metrics["functions"])


MODES = {
    "alone": fine, "fine": fine, "differ": differ, "fail": fail, "shared": shared, "preempted": preempted,
    "served": served, "drafted": drafted,
}  # fmt: skip
cli.app = member  # type: ignore[assignment]
cli.main()
