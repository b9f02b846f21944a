"""Every command of docs/DATA.md, on files such as it names."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from looptool_jax.cli import app
from looptool_jax.data.exporters import EXPORTS
from looptool_jax.data.importers import FORMATS
from looptool_jax.data.publish import publish
from looptool_jax.data.store import read_jsonl, read_samples
from looptool_jax.data.tool_documents import TOOL_FORMATS
from looptool_jax.world import generate

DOCUMENT = (Path(__file__).parents[2] / "docs/DATA.md").read_text()
COMMANDS = [line for line in DOCUMENT.split("## Commands")[1].splitlines() if line.startswith("looptool ")]


def records(file: str):
    spec = importlib.util.spec_from_file_location(file.removesuffix(".py"), Path(__file__).with_name(file))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def folder(tmp_path, monkeypatch):
    datasets, arrow = pytest.importorskip("datasets"), pytest.importorskip("pyarrow")
    import tensorflow_datasets as tfds
    from pyarrow import parquet

    calls, documents, chats = (
        records(f"test_{name}.py") for name in ("importers_calls", "tool_documents", "data_sets")
    )
    (tmp_path / "toolace.json").write_text(json.dumps([calls.toolace()]))
    (tmp_path / "xlam.json").write_text(json.dumps([calls.xlam()]))
    (tmp_path / "func-calling.json").write_text(json.dumps([calls.hermes()]))
    (tmp_path / "mine.jsonl").write_text(json.dumps(calls.bfcl_style()))
    session = re.search(r"```json\n(.*?)```", DOCUMENT, re.DOTALL)
    (tmp_path / "sessions.jsonl").write_text(json.dumps(json.loads(session[1])) + "\n" + json.dumps(calls.mcp()))
    parquet.write_table(arrow.Table.from_pylist(chats.ROWS), tmp_path / "train.parquet")
    datasets.Dataset.from_list(chats.ROWS).save_to_disk(tmp_path / "saved")
    text = {"messages": tfds.features.Text(), "tools": tfds.features.Text()}
    rows = [{**row, "messages": json.dumps(row["messages"])} for row in chats.MESSAGES]
    chats.build_tfds(tmp_path / "built", "chats", rows, "array_record", lambda tfds: tfds.features.FeaturesDict(text))
    (tmp_path / "chats").mkdir()
    (tmp_path / "built/chats").rename(tmp_path / "chats/demo")
    publish({1: generate("train", 3, seed=0)}, tmp_path / "published", "looptool")
    (tmp_path / "openapi.yaml").write_text(yaml.safe_dump(json.loads(json.dumps(documents.OPENAPI))))
    (tmp_path / "tools_list.json").write_text(json.dumps(documents.MCP))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_commands_do_what_the_document_says(folder):
    for command in COMMANDS:
        done = CliRunner().invoke(app, shlex.split(command)[1:])
        assert done.exit_code == 0, f"{command}\n{done.output}\n{done.exception!r}"
        out = folder / command.rsplit(" ", 1)[1]
        if " import " in command:
            assert list(read_samples(out)) and not list(read_jsonl(out / "rejected.jsonl")), command
        elif " export " in command:
            assert list(read_jsonl(out)) and "No format holds origin" in done.output
            assert not any("left_out" in row for row in read_jsonl(out.with_name(f"{out.stem}.losses.jsonl"))), command
        elif " tools " in command:
            assert list(read_jsonl(out)) and not list(read_jsonl(out.with_name(f"{out.stem}.rejected.jsonl")))
        elif "tfds:" in command:
            assert "tfds:published/looptool/round_1: 3 samples" in done.output
        else:
            assert "seeds: 3 samples, 2 tool documents, 0 faults" in done.output and "<tool_call>" in done.output
            assert "\x1b" not in done.output


def test_the_document_names_every_format():
    for format in FORMATS:
        assert f"| `{format}` |" in DOCUMENT
    for format in (*EXPORTS, *TOOL_FORMATS):
        assert any(f"--format {format} " in command for command in COMMANDS) or f"| `{format}` |" in DOCUMENT
