"""Mutated records: no importer raises, and every record comes out as samples or as a rejection with a reason."""

from __future__ import annotations

import copy
import importlib.util
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from looptool_jax.data import store
from looptool_jax.data.importers import FORMATS, import_file, write_import

PER_FORMAT = 2000
WEIRD = [
    None, True, 0, -1, 1.0, 1e300, 10**400, "", " ", "0", "null", "{}", "[]", '{"name": 1}', [], {}, [None], {"": ""},
    "\ud800", "e\u0301\u202e\u2028\0\x1b[0m", "😀" * 50, "<tool_call>", "</think>", "<|im_end|>", "API_call_0",
    [[[[[[]]]]]], "List[" * 150 + "int" + "]" * 150, '{"x": "\\ud800"}',
    {"type": "object"}, {"name": "search", "arguments": {"query": "x"}},
]  # fmt: skip
TAGS = [
    "<tool_call>", "</tool_call>", "<think>", "</think>", "<tools>", "</tools>", "<tool_response>",
    "<|im_start|>user\n", "<|im_end|>\n",
    "<user>", "</user>", "<obs>", "</response>", "\n2. Name: x", "{", "}", "[", '"', "\\", "\n", "\0",
    "\ud83d", "\u2028", "NaN", "1e999", "```json",
]  # fmt: skip


def seeds() -> dict[str, list[Any]]:
    """The hand-written records of the importer tests."""
    module, calls_module = _module("test_importers.py"), _module("test_importers_calls.py")
    calls = ("api1", {"x": "a"}), ("api2", {"x": "API_call_0"}), ("api3", {"x": "b", "y": 2})
    return {
        "looptool": [
            module.looptool(),
            module.looptool(input=module.HISTORY),
            module.looptool(output="<think>a</think>Which city?"),
        ],
        "openai": [module.openai()],
        "toolrl": [module.toolrl(), module.toolrl(output="<response> Sure. </response>")],
        "seal_tools": [module.seal(0, *calls), module.seal(1, calls[0])],
        "sharegpt": [module.sharegpt(), module.sharegpt(system="s")],
        **{format: [make()] for format, make in calls_module.MAKERS.items()},
    }


def _module(file: str) -> Any:
    spec = importlib.util.spec_from_file_location(file.removesuffix(".py"), Path(__file__).with_name(file))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def places(value: Any, path: tuple = ()) -> Iterator[tuple]:
    if path:
        yield path
    if isinstance(value, dict):
        for key in value:
            yield from places(value[key], (*path, key))
    elif isinstance(value, list):
        for index in range(len(value)):
            yield from places(value[index], (*path, index))


def mutate_value(record: Any, rng: random.Random) -> Any:
    path = rng.choice(list(places(record)))
    parent = record
    for key in path[:-1]:
        parent = parent[key]
    key, old = path[-1], parent[path[-1]]
    match rng.randrange(6):
        case 0:
            del parent[key]
        case 1:
            parent[key] = copy.deepcopy(rng.choice(WEIRD))
        case 2 if isinstance(old, str):
            parent[key] = mutate_text(old, rng)
        case 3 if isinstance(old, (dict, list)):
            parent[key] = json.dumps(old) if rng.random() < 0.5 else [old]
        case 4 if isinstance(parent, list):
            parent.insert(rng.randrange(len(parent) + 1), copy.deepcopy(old))
        case 4 if isinstance(parent, dict):
            parent[rng.choice(["name", "type", "required", "properties", "role", "", "\ud800"])] = parent.pop(key)
        case 5:
            for _ in range(rng.choice([3, 60, 90, 300])):
                old = [old] if rng.random() < 0.5 else {"k": old}
            parent[key] = old
        case _:
            parent[key] = rng.choice(WEIRD[:10])
    return record


def mutate_text(text: str, rng: random.Random) -> str:
    start = rng.randrange(len(text) + 1)
    end = min(len(text), start + rng.randrange(40))
    match rng.randrange(5):
        case 0:
            return text[:start]
        case 1:
            return text[:start] + text[end:]
        case 2:
            return text[:start] + rng.choice(TAGS) + text[start:]
        case 3:
            return text[:start] + text[start:end] * 2 + text[end:]
        case _:
            return text.replace(rng.choice(TAGS[:12]), rng.choice(TAGS))


def mutate_bytes(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data))
    match rng.randrange(6):
        case 0:
            return data[:at]
        case 1:
            return data[at:]
        case 2:
            return data[:at] + bytes([rng.randrange(256)]) + data[at + 1 :]
        case 3:
            return data[:at] + rng.choice([b"\xff", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"NaN", b",", b"'"]) + data[at:]
        case 4:
            return data.replace(b'"', b"'", rng.randrange(1, 9))
        case _:
            return data[:at] + b"[" * rng.choice([10, 5000]) + data[at:]


def mutated_line(records: list[Any], rng: random.Random) -> bytes:
    record = copy.deepcopy(rng.choice(records))
    for _ in range(rng.choice([0, 1, 1, 1, 2, 3])):
        if record:
            record = mutate_value(record, rng)
    data = json.dumps(record, ensure_ascii=rng.random() < 0.8, allow_nan=True).encode("utf-8", "surrogatepass")
    if rng.random() < 0.2:
        data = mutate_bytes(data, rng)
    return data.replace(b"\n", b" ")


@pytest.mark.parametrize("format", FORMATS)
def test_every_mutated_record_is_accounted_for(tmp_path, format):
    rng = random.Random(f"fuzz {format}")
    records = seeds()[format]
    lines = [mutated_line(records, rng) for _ in range(PER_FORMAT)]
    path = tmp_path / "in.jsonl"
    path.write_bytes(b"\n".join(lines))
    write_seal_documents(tmp_path)

    result = import_file(path, format)
    present = {number for number, line in enumerate(lines, 1) if line.strip()}
    kept = {sample.extra["line"] for sample in result.samples}
    rejected = {rejection.line for rejection in result.rejected}
    assert result.read == len(present) == result.kept + len(result.rejected)
    assert kept | rejected == present
    assert not kept & rejected
    assert len(kept) == result.kept > PER_FORMAT // 20
    assert len(rejected) > PER_FORMAT // 4
    for rejection in result.rejected:
        assert rejection.kind.strip() and rejection.raw
    assert len(result.tally()) > 5
    assert len({sample.id for sample in result.samples}) == len(result.samples)
    write_import(result, tmp_path / "out")
    assert tuple(store.read_samples(tmp_path / "out")) == result.samples
    assert sum(1 for _ in store.read_jsonl(tmp_path / "out" / "rejected.jsonl")) == len(rejected)


@pytest.mark.parametrize("format", FORMATS)
def test_a_damaged_list_never_raises(tmp_path, format):
    rng = random.Random(f"lists {format}")
    whole = json.dumps(seeds()[format] * 2, indent=1).encode()
    write_seal_documents(tmp_path)
    path = tmp_path / "in.json"
    for _ in range(40):
        path.write_bytes(b"[" + mutate_bytes(whole[1:], rng))
        result = import_file(path, format)
        assert result.read == result.kept + len(result.rejected)
        assert all(rejection.reason for rejection in result.rejected)


def write_seal_documents(tmp_path: Path) -> None:
    properties = {"x": {"type": "str"}, "y": {"type": "int"}}
    documents = (
        {"api_name": f"api{n}", "api_description": "d", "field": "f", "parameters": properties, "required": ["x"]}
        for n in range(12)
    )
    store.write_jsonl(tmp_path / "tool.jsonl", documents)
