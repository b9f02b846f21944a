"""The engine's thread: what jobs are told, in which order they are served, and what they hear when the engine fails."""

from __future__ import annotations

import asyncio
import threading

import pytest

from looptool_jax.inference.batch import Request, generate
from looptool_jax.inference.serving.worker import Job, Worker


async def told(job: Job) -> list[tuple[list[int], list[float], str | None]]:
    """Tokens, log-probs and end of every answer; the end is None where the worker ended before."""
    answers = [([], [], None) for _ in range(job.wanted)]
    while not all(finish for _, _, finish in answers):
        pieces = await asyncio.wait_for(job.pieces.get(), 60)
        if pieces is None:
            break
        for piece in pieces:
            tokens, logprobs, finish = answers[piece.index]
            assert finish is None
            answers[piece.index] = (tokens + piece.tokens, logprobs + piece.logprobs, piece.finish)
    return answers


def serve(engine, params, work, on_end=lambda: None):
    """What `work(worker)` returns while a worker serves."""

    async def run():
        worker = Worker(engine, params, False, on_end)
        try:
            await asyncio.to_thread(worker.ready.wait)
            return await work(worker)
        finally:
            await asyncio.to_thread(worker.stop)

    return asyncio.run(run())


def test_jobs_are_told_what_the_batch_loop_says(engine, tiny, requests):
    async def work(worker):
        jobs = [Job(request, 1 + i % engine.group) for i, request in enumerate(requests)]
        for job in jobs:
            worker.submit(job)
        return await asyncio.gather(*map(told, jobs))

    for i, (answers, wanted) in enumerate(
        zip(serve(engine, tiny.params, work), generate(engine, tiny.params, requests), strict=True)
    ):
        assert len(answers) == 1 + i % engine.group
        assert answers == [(each.tokens, each.logprobs, each.finish) for each in wanted[: len(answers)]]


def test_cancelled_jobs_give_way(single, tiny):
    async def work(worker):
        jobs = [Job(Request(str(i), [7, 8], (0, i), 0.0, 12), 1) for i in range(8)]
        for job in jobs:
            worker.submit(job)
        for job in jobs[:7]:
            worker.cancel(job)
        last = await told(jobs[7])
        worker.cancel(jobs[7])
        async with asyncio.timeout(60):
            while worker.slots_in_use:  # a job hears of its end before its slot is counted as free
                await asyncio.sleep(0.01)
        return last

    [(tokens, _, finish)] = serve(single, tiny.params, work)
    assert tokens == tiny.greedy([7, 8], 12) and finish


def test_an_engine_that_fails_ends_the_worker_and_all_jobs_hear_of_it(single, tiny, monkeypatch):
    ended = threading.Event()

    async def work(worker):
        def fail(*_):
            raise RuntimeError("the device is gone")

        monkeypatch.setattr(single, "generate", fail)
        jobs = [Job(Request(str(i), [7, 8], (0, i), 0.0, 12), 1) for i in range(5)]
        for job in jobs:
            worker.submit(job)
        heard = await asyncio.gather(*map(told, jobs))
        assert [finish for [(_, _, finish)] in heard] == [None] * 5
        assert await asyncio.to_thread(ended.wait, 30)
        return worker.problem

    problem = serve(single, tiny.params, work, ended.set)
    with pytest.raises(RuntimeError, match="the device is gone"):
        raise problem
