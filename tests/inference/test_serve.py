"""`looptool serve` as clients meet it: a random model of bytes that never ends an answer."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import jax
import pytest

from looptool_jax.inference.serving.server import ServeConfig, ServeError
from looptool_jax.models import decoder, hf

openai = pytest.importorskip("openai")

KEY = "sk-loop/0123"
LONG = 1500
SIZES = (
    "policy.format=qwen3", "policy.dtype=float32", "train.answers.prompt_tokens=256",
    "evaluate.answers.prompt_tokens=256",
    f"evaluate.answers.answer_tokens={LONG}", "evaluate.answers.slots=2", "evaluate.answers.steps_per_sync=4",
)  # fmt: skip


@pytest.fixture(scope="module")
def endless(folder, byte_cfg, tmp_path_factory) -> str:
    """A model whose logits are far apart, and those of its end tokens in the middle."""
    path = tmp_path_factory.mktemp("endless")
    cfg = replace(byte_cfg, tie_embeddings=False)
    params = jax.jit(decoder.init_params, static_argnums=0)(cfg, jax.random.key(1))
    hf.save_pretrained(params | {"unembedding": (50 * params["unembedding"]).at[256:].set(0.0)}, cfg, path)
    shutil.copy(folder / "tokenizer.json", path)
    return str(path)


@pytest.fixture(scope="module")
def server(start_server, endless):
    """Two slots of two answers, and room for one request that waits."""
    options = ("--name", "bytes", "--group", "2", "--waiting", "1", "--api-key-env", "SERVE_KEY")
    return start_server("--model", endless, *options, *SIZES, SERVE_KEY=KEY)


@pytest.fixture
def client(server):
    with openai.OpenAI(base_url=server.address, api_key=KEY, max_retries=0, timeout=60) as made:
        yield made


def post(server, body, path: str = "/v1/chat/completions", **headers: str) -> tuple[int, dict]:
    return server.send("POST", path, body, **{"Authorization": f"Bearer {KEY}", **headers})


def chat(text: str = "Hi", **fields) -> dict:
    return {"model": "bytes", "messages": [{"role": "user", "content": text}], "max_tokens": 8, **fields}


def wait_for(server, **state) -> dict:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        _, health = server.get("/health")
        if health.items() >= state.items():
            return health
        time.sleep(0.02)
    raise AssertionError(f"{state} never came: {health}")


def long_stream(client, seed: int = 0):
    return client.chat.completions.create(**chat(max_tokens=LONG, seed=seed), stream=True)


def test_a_reply_says_what_it_took(client):
    reply = client.chat.completions.create(**chat(temperature=0))
    choice, count = reply.choices[0], reply.usage
    assert (reply.model, reply.object, choice.finish_reason, choice.index) == ("bytes", "chat.completion", "length", 0)
    assert (count.completion_tokens, count.total_tokens) == (8, count.prompt_tokens + 8)
    assert choice.message.role == "assistant" and choice.message.tool_calls is None and choice.logprobs is None
    assert [model.id for model in client.models.list()] == ["bytes"] and client.models.retrieve("bytes").id == "bytes"


def test_seeds_and_groups(client):
    def texts(**fields):
        reply = client.chat.completions.create(**chat(**fields, temperature=1.0, max_tokens=40))
        return [choice.message.content for choice in reply.choices]

    assert texts(seed=7) == texts(seed=7)
    two = texts(seed=7, n=2)
    assert two[:1] == texts(seed=7)
    # The likeliest text has more than half of the mass, so single draws are often equal.
    assert len({text for seed in range(-8, 8) for text in texts(seed=seed)}) > 1
    assert len({text for seed in range(8) for text in texts(seed=seed, n=2)[1:]}) > 1
    assert len({text for _ in range(8) for text in texts(n=2)}) > 1


def test_a_stream_is_the_reply_in_pieces(client):
    fields = chat(temperature=1.0, seed=3, n=2, logprobs=True, max_tokens=40)
    whole = client.chat.completions.create(**fields)
    texts, finishes, logprobs = ["", ""], [None, None], [[], []]
    *chunks, last = client.chat.completions.create(**fields, stream=True, stream_options={"include_usage": True})
    for chunk in chunks:
        [choice] = chunk.choices
        assert finishes[choice.index] is None
        texts[choice.index] += choice.delta.content or ""
        finishes[choice.index] = choice.finish_reason
        logprobs[choice.index] += choice.logprobs.content if choice.logprobs else []
    assert texts == [choice.message.content for choice in whole.choices]
    assert finishes == [choice.finish_reason for choice in whole.choices]
    assert logprobs == [choice.logprobs.content for choice in whole.choices]
    assert last.choices == [] and last.usage == whole.usage and len({chunk.id for chunk in chunks}) == 1
    assert sum(len(each) for each in logprobs) == 80 and len(chunks) > 6


def test_completions_go_on_with_ids_and_with_text(client):
    def complete(prompt, **fields):
        reply = client.completions.create(model="bytes", prompt=prompt, temperature=0, max_tokens=12, **fields)
        return reply.choices[0]

    text = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    assert complete(text).text == client.chat.completions.create(
        **chat(temperature=0, max_tokens=12)
    ).choices[0].message.content  # fmt: skip
    told = complete([72, 105], logprobs=0).logprobs
    assert len(told.tokens) == len(told.token_logprobs) == len(told.text_offset) == 12
    streamed = client.completions.create(model="bytes", prompt=[72, 105], temperature=0, max_tokens=12, stream=True)
    assert "".join(chunk.choices[0].text for chunk in streamed) == complete([72, 105]).text


def test_an_answer_ends_at_the_servers_longest_where_a_client_would_have_more(client):
    """Clients ask for what the model's context leaves, whatever the server's sizes are."""
    chatted = client.chat.completions.create(**chat(temperature=0, max_tokens=4096))
    completed = client.completions.create(model="bytes", prompt="abc", temperature=0, max_tokens=LONG + 1)
    for reply in (chatted, completed):
        assert (reply.choices[0].finish_reason, reply.usage.completion_tokens) == ("length", LONG)


def test_stop_strings_end_an_answer(client):
    whole = client.completions.create(model="bytes", prompt="abc", seed=1, max_tokens=60).choices[0].text
    stop = whole[20:22]
    reply = client.completions.create(model="bytes", prompt="abc", seed=1, max_tokens=60, stop=["never", stop])
    assert reply.choices[0].text == whole.partition(stop)[0] and reply.choices[0].finish_reason == "stop"
    assert reply.usage.completion_tokens < 60


def test_short_requests_join_while_a_long_one_is_decoded(client, server):
    with long_stream(client) as stream:
        next(stream)
        wait_for(server, slots_in_use=1)
        for _ in range(3):
            assert client.chat.completions.create(**chat()).usage.completion_tokens == 8
        assert server.get("/health")[1]["slots_in_use"] == 1, "the long one is still there"
        assert sum(1 for _ in stream) > 50
    wait_for(server, slots_in_use=0, requests=0)


def test_what_a_request_gets_does_not_depend_on_the_others(client):
    def ask(seed: int) -> str:
        patient = client.with_options(max_retries=20)
        body = chat(f"question {seed}", seed=seed, temperature=1.0, max_tokens=30 + 7 * seed)
        return patient.chat.completions.create(**body).choices[0].message.content

    alone = [ask(seed) for seed in range(8)]
    assert len({text[:10] for text in alone}) == 8
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(ask, range(8))) == alone


def test_a_client_that_hangs_up_frees_its_slot(client, server):
    started = time.monotonic()
    assert post(server, chat(max_tokens=LONG))[0] == 200
    whole = time.monotonic() - started
    streams = [long_stream(client, seed) for seed in range(2)]
    for stream in streams:
        next(stream)
    wait_for(server, slots_in_use=2)
    streams[0].close()
    wait_for(server, slots_in_use=1, requests=1)
    assert client.chat.completions.create(**chat()).usage.completion_tokens == 8
    assert server.get("/health")[1]["slots_in_use"] == 1, "the other one has not ended either"
    streams[1].close()
    wait_for(server, slots_in_use=0, requests=0)
    body = json.dumps(chat(max_tokens=LONG)).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: here\r\nAuthorization: Bearer {KEY}\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    host, port = server.address.removesuffix("/v1").removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:  # not a stream: nothing is written to it yet
        connection.sendall(head.encode() + body)
        wait_for(server, slots_in_use=1)
    started = time.monotonic()
    wait_for(server, slots_in_use=0, requests=0)
    assert time.monotonic() - started < whole / 2, "it was not decoded to its end"
    assert client.chat.completions.create(**chat()).usage.completion_tokens == 8


def test_too_many_requests_are_told_to_wait(client, server):
    streams = [long_stream(client, seed) for seed in range(3)]
    try:
        wait_for(server, slots_in_use=2, requests=3)
        status, body = post(server, chat())
        assert (status, body["error"]["type"]) == (429, "rate_limit_error")
        assert server.headers["Retry-After"] == "1"
    finally:
        for stream in streams:
            stream.close()
    wait_for(server, slots_in_use=0, requests=0)


def test_only_who_has_the_key_is_served(server):
    for authorization in ("", "Bearer", "Bearer ", f"Bearer {KEY}x", f"Basic {KEY}", "Bearer \xff", KEY):
        status, body = post(server, chat(), Authorization=authorization)
        assert (status, body["error"]["code"]) == (401, "invalid_api_key"), authorization
        assert KEY not in json.dumps(body)
    assert server.send("GET", "/v1/models")[0] == 401 and server.get("/health")[0] == 200


TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
REFUSED = [
    ({"messages": []}, 400, "messages", "at least one message"),
    ({"messages": "Hi"}, 400, "messages", "list"),
    ({"messages": [{"role": "wizard", "content": ""}]}, 400, "messages", "wizard"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "messages", "more than text"),
    ({"messages": [{"role": "user", "content": "\ud800"}]}, 400, "messages", "surrogate"),
    ({"model": "gpt-4"}, 404, "model", "bytes"),
    ({"model": 7}, 400, "model", "bytes"),
    ({"n": 3}, 400, "n", "from 1 to 2"),
    ({"n": True}, 400, "n", "from 1 to 2"),
    ({"max_tokens": 0}, 400, "max_tokens", "from 1"),
    ({"max_completion_tokens": 0}, 400, "max_completion_tokens", "from 1"),
    ({"temperature": -1}, 400, "temperature", "from 0 to 2"),
    ({"temperature": "warm"}, 400, "temperature", "from 0 to 2"),
    ({"top_p": 0.9, "temperature": 1}, 400, "top_p", "--top-p 0.9"),
    ({"top_k": 5, "temperature": 1}, 400, "top_k", "--top-k 5"),
    ({"logprobs": True, "top_logprobs": 5}, 400, "top_logprobs", "not supported"),
    ({"frequency_penalty": 0.5}, 400, "frequency_penalty", "not supported"),
    ({"logit_bias": {"5": 3}}, 400, "logit_bias", "not supported"),
    ({"tools": [TOOL], "parallel_tool_calls": False}, 400, "parallel_tool_calls", "tool_choice"),
    ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "g"}}}, 400, "tool_choice", "no such"),
    ({"tool_choice": "required"}, 400, "tool_choice", "no such function"),
    ({"response_format": {"type": "xml"}}, 400, "response_format", "json_schema"),
    ({"stop": ["a"] * 5}, 400, "stop", "up to 4"),
    ({"stop": ""}, 400, "stop", "1 to 200"),
    ({"stream": 1}, 400, "stream", "true or false"),
    ({"stream_options": {"include_usage": True}}, 400, "stream_options", "stream"),
    ({"seed": 1.5}, 400, "seed", "integer"),
    ({"tools": TOOL}, 400, "tools", "list"),
    ({"tools": [{"name": ""}]}, 400, "tools", "needs a name"),
    ({"tools": [TOOL], "tool_choice": "sometimes"}, 400, "tool_choice", "auto"),
    ({"mirostat": 2}, 400, "mirostat", "no such field"),
]


@pytest.mark.parametrize(("change", "status", "param", "words"), REFUSED)
def test_what_cannot_be_served_is_refused_by_name(server, change, status, param, words):
    found, body = post(server, {**chat(), **change})
    assert (found, body["error"]["param"]) == (status, param), body
    assert words in body["error"]["message"] and "\n" not in body["error"]["message"]


def test_fields_that_say_nothing_about_the_answer_are_taken(server):
    fields = {"user": "me", "frequency_penalty": 0, "top_p": 0.5, "temperature": 0, "response_format": {"type": "text"}}
    assert post(server, chat(**fields, store=False, stop=None, tools=None))[0] == 200


def test_a_prompt_that_is_too_long_is_refused_by_its_code(client):
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**chat("long " * 60))
    assert caught.value.code == "context_length_exceeded" and "256" in str(caught.value)
    with pytest.raises(openai.BadRequestError, match="token 999 is none"):
        client.completions.create(model="bytes", prompt=[999])
    with pytest.raises(openai.BadRequestError, match="0 tokens"):
        client.completions.create(model="bytes", prompt="")


def test_a_prompt_that_no_tokens_could_make_short_enough_is_not_tokenised(server):
    text = "<|im_start|>" * 300_000  # the longest token has 13 bytes
    for path, fields in (("/v1/chat/completions", chat(text)), ("/v1/completions", {"model": "bytes", "prompt": text})):
        status, body = post(server, fields, path)
        assert (status, body["error"]["code"]) == (400, "context_length_exceeded")
        assert "at least 27" in body["error"]["message"]


def test_other_mistakes_get_their_status(server):
    status, body = post(server, b"no gzip", **{"Content-Encoding": "gzip"})
    assert (status, body["error"]["type"]) == (400, "invalid_request_error")
    assert post(server, b"{", "/v1/completions")[0] == 400
    assert "not JSON" in post(server, b"[1,")[1]["error"]["message"]
    assert "must be a JSON object" in post(server, [])[1]["error"]["message"]
    assert "twice" in post(server, b'{"model": "bytes", "model": "bytes"}')[1]["error"]["message"]
    assert "nested deeper" in post(server, b"[" * 10_000)[1]["error"]["message"]
    assert post(server, chat("x" * (4 << 20)))[0] == 413
    assert post(server, chat(), **{"Content-Type": "text/plain"})[0] == 415
    for method, path, status in (
        ("GET", "/v1/chat/completions", 405),
        ("GET", "/v2", 404),
        ("GET", "/v1/models/x", 404),
    ):
        found, body = server.send(method, path, Authorization=f"Bearer {KEY}")
        assert found == status and body["error"]["message"]


def test_a_server_that_is_told_to_stop_ends_what_is_here(server, client):
    """The last test of this server."""
    found: list[tuple[int, dict]] = []
    asking = threading.Thread(target=lambda: found.append(post(server, chat(max_tokens=LONG))))
    with long_stream(client) as stream:
        next(stream)
        asking.start()
        wait_for(server, slots_in_use=2)
        server.process.send_signal(signal.SIGTERM)
        wait_for(server, status="stopping")
        with pytest.raises(openai.InternalServerError, match="stopping") as caught:
            client.chat.completions.create(**chat())
        assert caught.value.status_code == 503
        assert [*stream][-1].choices[0].finish_reason == "length"
    asking.join()
    assert found[0][0] == 200 and found[0][1]["usage"]["completion_tokens"] == LONG
    assert server.process.wait(timeout=20) == 0


def test_a_key_that_is_none_is_refused(monkeypatch):
    monkeypatch.setenv("EMPTY_KEY", " ")
    for name, words in (("NO_SUCH_KEY", "NO_SUCH_KEY holds no key"), ("EMPTY_KEY", "no key"), ("sk-123", "never the")):
        with pytest.raises(ServeError, match=words) as caught:
            ServeConfig(api_key_env=name).key()
        assert "sk-123" not in str(caught.value)
    with pytest.raises(ServeError, match="--port"):
        ServeConfig(port=70_000)


@pytest.mark.slow
def test_a_port_that_is_taken_is_one_line(endless):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        command = [sys.executable, "-c", "from looptool_jax.cli import main; main()", "serve", "--port", port]
        env = {**os.environ, "XLA_FLAGS": ""}
        done = subprocess.run([*command, "--model", endless, *SIZES], capture_output=True, text=True, env=env)
    assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1 and port in done.stderr, done.stderr
