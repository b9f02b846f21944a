"""Where models come from: folders, an object store (a real emulator), the hub (its real client, a small server)."""

import hashlib
import http.server
import json
import os
import socket
import subprocess
import sys
import threading
import urllib.parse
from pathlib import Path

import jax
import numpy as np
import pytest

from looptool_jax.data.files import DataError, list_names
from looptool_jax.inference.lm import ModelConfig, load_language_model
from looptool_jax.loop.pool import locate
from looptool_jax.models import hf, storage
from looptool_jax.models.config import DecoderConfig, ModelError
from looptool_jax.models.sources import model_folder, weights_folder
from looptool_jax.parallel.mesh import MeshConfig, make_mesh

NANO = locate("nano/judge", "")


@pytest.fixture
def nano():
    cfg = DecoderConfig.from_pretrained(NANO)
    return cfg, hf.load_params(NANO, cfg)


def assert_same(ours, theirs):
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_array_equal(a, b)


def test_an_existing_folder_wins(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("some/model", "quantised.gguf"):
        Path(name).mkdir(parents=True)
        assert locate(name, "cache") == name and model_folder(name) == Path(name) and weights_folder(name) == name
    assert locate("gs://bucket/model", "cache") == weights_folder("gs://bucket/model") == "gs://bucket/model"
    assert locate("Qwen/Qwen3-0.6B", "cache") == "Qwen/Qwen3-0.6B"
    for name in ("./some/other", "/some/other", "other", "one/two/three"):
        with pytest.raises(ModelError, match=r"is not a folder; a model is a local folder, .* or a hub id"):
            model_folder(name)


def test_a_file_url_is_a_local_path(nano, tmp_path):
    cfg, params = nano
    url = f"file://{tmp_path}/judge"
    hf.save_pretrained(params, cfg, url, NANO)
    assert "config.json" in storage.list_files(url) == storage.list_files(tmp_path / "judge")
    assert locate(url) == str(tmp_path / "judge") == str(model_folder(url))
    assert_same(hf.load_params(url, cfg), params)


def test_an_object_store(bucket, nano, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(hf, "SHARD_BYTES", 1_000_000)
    monkeypatch.setattr(storage, "RANGE_BYTES", 100_000)
    cfg, params = nano
    hf.save_pretrained(params, cfg, f"{bucket}/judge", NANO)
    names = list_names(f"{bucket}/judge")
    assert {"config.json", "tokenizer.json", "model.safetensors.index.json"} < set(names) and len(names) > 5
    lm = load_language_model(ModelConfig(f"{bucket}/judge", "qwen3", "float32"), make_mesh(MeshConfig()))
    assert_same(lm.params, params)
    assert sorted(os.listdir(lm.folder)) == [
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    hf.save_pretrained(params, cfg, f"{bucket}/judge", lm.folder)
    with pytest.raises(ModelError, match=r"/nothing has no config\.json"):
        model_folder(f"{bucket}/nothing")
    with pytest.raises(ModelError, match=r"/nothing has neither model\.safetensors nor"):
        hf.load_params(f"{bucket}/nothing", cfg)
    with pytest.raises(DataError, match="there is no bucket gs://no-such-bucket"):
        hf.save_pretrained(params, cfg, "gs://no-such-bucket/judge")


CODE = """
import sys
from looptool_jax.models import sources
from looptool_jax.models.config import ModelError
from looptool_jax.models.sources import model_folder, weights_folder
sources.HUB_PATIENCE = 3.0
try:
    print(model_folder("some-team/Judge-1.0"), weights_folder("some-team/Judge-1.0"))
except ModelError as error:
    print(error)
"""


def from_hub(home: Path, **environment: str) -> str:
    env = {**os.environ, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_TELEMETRY": "1", **environment}
    return subprocess.run(
        [sys.executable, "-c", CODE], env=env, capture_output=True, text=True, check=True, timeout=100
    ).stdout.strip()


@pytest.fixture
def hub():
    """A server with the hub's own answers for one model; `asked` are the paths of its requests."""
    revision, files = "1" * 40, {file.name: file.read_bytes() for file in Path(NANO).iterdir()}
    files |= {"original/model.safetensors": b"other", "README.md": b"# Judge"}
    asked = []

    class Hub(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
            asked.append(path)
            content, headers = b"", {}
            if path.startswith(f"/api/models/some-team/Judge-1.0/tree/{revision}"):
                tree = [
                    {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                    for name, data in files.items()
                ]
                content = json.dumps(tree).encode()
            elif path.startswith("/api/models/some-team/Judge-1.0"):
                content = json.dumps({"id": "some-team/Judge-1.0", "sha": revision, "siblings": []}).encode()
            elif path.startswith(prefix := f"/some-team/Judge-1.0/resolve/{revision}/"):
                content = files[path.removeprefix(prefix)]
                headers = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": revision}
            self.send_response(200 if content else 404)
            for name, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        do_HEAD = do_GET

        def log_message(self, *_: object) -> None: ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    server.server_close()


def test_the_hub(hub, tmp_path):
    address, asked = hub
    folder, weights = from_hub(tmp_path, HF_ENDPOINT=address).split()
    assert folder == weights
    names = sorted(os.listdir(folder))
    assert names == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert all((Path(folder) / name).read_bytes() == (Path(NANO) / name).read_bytes() for name in names)
    assert not any("README" in path or "original" in path for path in asked)
    asked.clear()
    assert from_hub(tmp_path, HF_ENDPOINT=address, HF_HUB_OFFLINE="1").split() == [folder, weights]
    assert not asked


def test_no_hub_is_one_line_that_says_what_to_do(hub, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        never_answers = f"http://127.0.0.1:{silent.getsockname()[1]}"
        environments = {"HF_ENDPOINT": "http://127.0.0.1:9"}, {"HF_ENDPOINT": never_answers}, {"HF_HUB_OFFLINE": "1"}
        lines = [from_hub(tmp_path, **environment) for environment in environments]
    for line in lines:
        assert "\n" not in line
        assert line.startswith("some-team/Judge-1.0 is not a folder here") and "hf download some-team/Judge-1.0" in line
    line = from_hub(tmp_path, HF_ENDPOINT=f"{hub[0]}/elsewhere")
    assert "\n" not in line and line.startswith("some-team/Judge-1.0 is not a folder here")
