"""Synthetic API documents (paper, section 3.1): a leaf path of each tree, one prompt, one document, rules.

The rules hold a document against JSON Schema, against itself, and against what the drawn constraints let a program
check. Documents with the same name and parameters are one.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

from looptool_jax.data.store import dump_json, join, write_bytes, write_jsonl
from looptool_jax.inference.answers import ChatModel, ChatRequest
from looptool_jax.loop.console import Console
from looptool_jax.loop.keys import key_for, random_for
from looptool_jax.loop.prompts.synthesis import Unreadable, api_messages, parse_api
from looptool_jax.loop.synthesis.config import SynthesisConfig
from looptool_jax.loop.synthesis.trees import TYPES, Constraint, Path, Trees
from looptool_jax.parallel.chunks import process_in_chunks
from looptool_jax.toolcall import Tool
from looptool_jax.toolcall.schema import check_value
from looptool_jax.toolcall.type_names import declared_types

MOST_CHARACTERS = 64  # of a name, as APIs of models have it

_CASES = {
    "simple": r"[a-z][a-z0-9]*",
    "snake": r"[a-z][a-z0-9]*(_[a-z0-9]+)*",
    "camel": r"[a-z][a-z0-9]*([A-Z][a-z0-9]*)*",
    "kebab": r"[a-z][a-z0-9]*(-[a-z0-9]+)*",
}


def synthesize_apis(
    generator: ChatModel, trees: Sequence[Trees], seed: int, cfg: SynthesisConfig, out: str, console: Console
) -> dict[str, Any]:
    """Have `cfg.count` API documents written and return the metrics.

    Writes `out/tools.jsonl` (normalised documents, each with the place and the constraints it was drawn for),
    `out/rejected.jsonl` (the others, with tier, reason and reply) and `out/metrics.json`.
    """

    def work(numbers: Sequence[int]) -> list[dict[str, Any]]:
        drawn = [_draw(trees, seed, number) for number in numbers]
        requests = [
            ChatRequest(
                f"api-{number}",
                api_messages(place, [constraint.say for constraint in constraints]),
                key_for(seed, "synthesize", "api", number),
            )
            for number, (place, constraints) in zip(numbers, drawn, strict=True)
        ]
        replies = generator.chat(
            requests, cfg.answers, console.tokens, temperature=cfg.temperature, top_p=cfg.top_p, top_k=cfg.top_k
        )
        console.advance(len(numbers))
        return [
            _read(number, place, constraints, reply.text, reply.finish)
            for number, (place, constraints), reply in zip(numbers, drawn, replies, strict=True)
        ]

    rows = process_in_chunks(range(cfg.count), cfg.chunk, join(out, "progress.jsonl"), work, console)
    _merge_duplicates(rows)
    kept = [row for row in rows if not row["tier"]]
    write_jsonl(
        join(out, "tools.jsonl"),
        [row["tool"] | {"place": row["place"], "constraints": row["constraints"]} for row in kept],
    )
    write_jsonl(join(out, "rejected.jsonl"), [row for row in rows if row["tier"]])
    tiers = Counter(row["tier"] for row in rows)
    metrics = {
        "written": len(rows),
        "accepted": len(kept),
        **{f"rejected_{tier}": tiers[tier] for tier in ("length", "parse", "rules", "duplicate")},
        "places": len({tuple(row["place"]) for row in kept}),
    }
    write_bytes(join(out, "metrics.json"), dump_json(metrics) + b"\n")
    return metrics


def check_document(tool: Tool, constraints: Sequence[Constraint]) -> list[str]:
    """Everything wrong with a document by the rules, one line each."""
    problems = _name_problems(tool.name, "the function", constraints)
    if not tool.description.strip():
        problems.append("the function has no description")
    if strangers := [name for name in tool.required if name not in tool.properties]:
        problems.append(f"required names {strangers[0]!r}, which is no parameter")
    for name, schema in tool.properties.items():
        problems += _name_problems(name, "a parameter", constraints)
        problems += _schema_problems(schema, name)
        if not str(schema.get("description", "")).strip():
            problems.append(f"{name} has no description")
        if name in tool.required and "default" in schema:
            problems.append(f"{name} is required and has a default")
    return problems + [problem for constraint in constraints for problem in _broken(constraint, tool)]


def _draw(trees: Sequence[Trees], seed: int, number: int) -> tuple[Path, list[Constraint]]:
    """What document `number` is about: a domain by the number of its functions, then a path of each tree."""
    rng = random_for(seed, "synthesize", "api", number)
    (domain,) = rng.choices(trees, [len(each.places) for each in trees])
    return domain.draw(rng)


def _read(number: int, place: Path, constraints: Sequence[Constraint], reply: str, finish: str) -> dict[str, Any]:
    """The row of a reply; `tier` names what rejected it."""
    row: dict[str, Any] = {
        "number": number,
        "place": list(place),
        "constraints": [" > ".join(constraint.path) for constraint in constraints],
        "tier": "",
    }
    try:
        if finish != "stop":
            return row | {"tier": "length", "reason": f"the reply is not whole ({finish})", "reply": reply}
        tool = parse_api(reply)
    except Unreadable as error:
        return row | {"tier": "parse", "reason": str(error), "reply": reply}
    if problems := check_document(tool, constraints):
        return row | {"tier": "rules", "reason": "; ".join(problems), "reply": reply}
    return row | {"tool": tool.to_json(), "reply": reply}


def _name_problems(name: str, what: str, constraints: Sequence[Constraint]) -> list[str]:
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]*", name) or len(name) > MOST_CHARACTERS:
        return [f"{name[:MOST_CHARACTERS]!r} is no name for {what}"]
    return [
        f"{name} is not written in {constraint.case} case"
        for constraint in constraints
        if constraint.case is not None and not re.fullmatch(_CASES[constraint.case], name)
    ]


def _schema_problems(schema: dict[str, Any], path: str) -> list[str]:
    """What is wrong with the schema of a value, and of the values in it."""
    declared = declared_types(schema)
    if not declared or not set(declared) <= {*TYPES, "null"}:
        return [f"{path} declares no JSON type"]
    problems = []
    if "enum" in schema:
        options = schema["enum"] if isinstance(schema["enum"], list) else []
        if len(options) < 2 or len(set(map(repr, options))) < len(options):
            problems.append(f"{path}: an enum needs two or more different values")
        problems += [line for value in options for line in check_value(value, _without_enum(schema), path)]
    if "default" in schema and (wrong := check_value(schema["default"], schema, path)):
        problems.append(f"{path}: the default does not fit ({wrong[0]})")
    if "array" in declared and not isinstance(schema.get("items", schema.get("prefixItems")), dict | list):
        problems.append(f"{path}: an array without items")
    if isinstance(schema.get("items"), dict):
        problems += _schema_problems(schema["items"], f"{path}[]")
    properties = schema.get("properties", {})
    if "object" in declared and not properties and "additionalProperties" not in schema:
        problems.append(f"{path}: an object without properties")
    for name, inner in properties.items():
        problems += _schema_problems(inner, f"{path}.{name}")
    if strangers := [name for name in schema.get("required", ()) if name not in properties]:
        problems.append(f"{path}: required names {strangers[0]!r}, which is no property")
    return problems


def _without_enum(schema: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in schema.items() if key != "enum"}


def _broken(constraint: Constraint, tool: Tool) -> list[str]:
    """Which checks of a constraint a document fails; those of names are `_name_problems`."""
    count = len(tool.properties)
    types = [name for schema in tool.properties.values() for name in declared_types(schema)]
    problems = []
    if constraint.least is not None and count < constraint.least:
        problems.append(f"{count} parameters, at least {constraint.least} are asked for")
    if constraint.most is not None and count > constraint.most:
        problems.append(f"{count} parameters, at most {constraint.most} are asked for")
    if constraint.types is not None and (others := set(types) - {*constraint.types, "null"}):
        problems.append(f"a parameter of type {min(others)}, not one of {', '.join(constraint.types)}")
    if constraint.needs is not None and not set(constraint.needs) & set(types):
        problems.append(f"no parameter of type {' or '.join(constraint.needs)}")
    return problems


def _merge_duplicates(rows: list[dict[str, Any]]) -> None:
    """Of documents with one name and the same parameters, spelling and order apart, the first stays."""
    seen: dict[tuple[str, frozenset[str]], int] = {}
    for row in rows:
        if row["tier"]:
            continue
        tool = row["tool"]
        content = _squash(tool["name"]), frozenset(map(_squash, tool["parameters"]["properties"]))
        first = seen.setdefault(content, row["number"])
        if first != row["number"]:
            row.update(tier="duplicate", reason=f"the name and parameters of document {first}")


def _squash(name: str) -> str:
    """A name without case and separators."""
    return re.sub(r"[^a-z0-9]", "", name.lower())
