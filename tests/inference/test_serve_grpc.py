"""JetStream's own client against `looptool serve --grpc` in a process of its own."""

from __future__ import annotations

import signal
from concurrent.futures import ThreadPoolExecutor

import grpc
import jax
import pytest
from jetstream.core.proto import jetstream_pb2, jetstream_pb2_grpc

from looptool_jax.inference.batch import Request, generate
from looptool_jax.inference.lm import ModelConfig, load_language_model
from looptool_jax.parallel.mesh import MeshConfig, make_mesh

LONGEST = 24
SIZES = (
    "policy.format=qwen3", "policy.dtype=float32", "train.answers.prompt_tokens=24",
    "evaluate.answers.prompt_tokens=24",
    f"evaluate.answers.answer_tokens={LONGEST}", "evaluate.answers.slots=3",
)  # fmt: skip


@pytest.fixture(scope="module")
def server(start_server, folder):
    return start_server("--model", str(folder), "--grpc", "--waiting", "20", *SIZES)


@pytest.fixture(scope="module")
def stub(server):
    with grpc.insecure_channel(server.address) as channel:
        yield jetstream_pb2_grpc.OrchestratorStub(channel)


def asking(ids: list[int], max_tokens: int = LONGEST, **fields) -> jetstream_pb2.DecodeRequest:
    content = jetstream_pb2.DecodeRequest.TokenContent(token_ids=ids)
    return jetstream_pb2.DecodeRequest(token_content=content, max_tokens=max_tokens, **fields)


def decode(stub, request) -> list[int]:
    pieces = [response.stream_content.samples[0].token_ids for response in stub.Decode(request, timeout=60)]
    return [token for piece in pieces for token in piece]


def test_greedy_answers_are_those_of_the_batch_loop(stub, folder):
    lm = load_language_model(ModelConfig(str(folder), "qwen3", "float32"), make_mesh(MeshConfig(), jax.devices()[:1]))
    engine = lm.engine(slots=3, prompt_len=24, answer_len=LONGEST, steps_per_sync=1)
    limits = (LONGEST, 1, 5, LONGEST, 23, 9)
    requests = [
        Request(str(i), [(31 * i + j) % 200 for j in range(length)], (0, 0), 0.0, limit)
        for i, (length, limit) in enumerate(zip((17, 18, 24, 23, 20, 21), limits, strict=True))
    ]
    wanted = [completion.tokens for [completion] in generate(engine, lm.params, requests)]
    with ThreadPoolExecutor(6) as pool:
        served = list(pool.map(lambda each: decode(stub, asking(list(each.tokens), each.max_new)), requests))
    assert served == [[token for token in tokens if token not in engine.eos_ids] for tokens in wanted]
    assert stub.HealthCheck(jetstream_pb2.HealthCheckRequest()).is_live


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (asking([]), "0 tokens"),
        (asking([5] * 25), "25 tokens, the engine takes 24"),
        (asking([5, 264]), "token 264"),
        (asking([5, -7]), "token -7"),
        (asking([5], 0), "max_new is 0"),
        (asking([5], LONGEST + 1), f"max_new is {LONGEST + 1}"),
        (asking([5], session_cache="x"), "no sessions"),
        (jetstream_pb2.DecodeRequest(max_tokens=3), "token ids"),
        (
            jetstream_pb2.DecodeRequest(
                max_tokens=3, text_content=jetstream_pb2.DecodeRequest.TextContent(text="Hi")
            ),
            "token ids",
        ),
    ],
)  # fmt: skip
def test_what_would_kill_the_driver_is_refused(stub, request_, words):
    with pytest.raises(grpc.RpcError) as caught:
        decode(stub, request_)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT and words in caught.value.details()
    assert len(decode(stub, asking([5], 3))) <= 3


def test_a_client_that_leaves_does_not_end_the_server(stub):
    call = stub.Decode(asking([7, 8]))
    next(call)
    call.cancel()
    assert decode(stub, asking([7, 8])) == decode(stub, asking([7, 8]))


def test_it_ends_when_told(server, stub):
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(timeout=30) == 0
