"""ToolACE: `{system, conversations}`, calls in Python's words: `[Market Trends API(country="us", days=3)]`.

system: instructions around a JSON list of tools. Sentences about functions and how to call them are dropped, they would
contradict the chat format, and kept in `extra["fields"]["instructions"]`; the others become the system message.
conversations: `{from, value}` turns by user, assistant and tool. A tool turn is a list of `{name, results}`.
"""

from __future__ import annotations

import json
import re
from typing import Any

from looptool_jax.data.files import parse_json
from looptool_jax.data.importers.call_syntax import looks_like_calls, read_calls
from looptool_jax.data.importers.common import (
    Reject,
    Source,
    build_samples,
    read_list,
    read_results,
    read_text,
    read_tools,
    split_steps,
    without_instructions,
)
from looptool_jax.toolcall.records import Message, Sample

_LIST = re.compile(r"\[\s*\{")


def convert(record: dict[str, Any], source: Source) -> list[Sample]:
    """One sample per assistant turn that answers something. Raises Reject."""
    before, documents, after = _read_system(read_text(record, "system"))
    tools = read_tools(documents)
    own, instructions = without_instructions(f"{before}\n{after}")
    messages = [Message("system", own)] if own else []
    names = [tool.name for tool in tools]
    for number, raw in enumerate(read_list(record.get("conversations"), "conversations"), 1):
        messages += _read_turn(raw, number, names)
    fields = {key: value for key, value in record.items() if key not in ("system", "conversations")}
    return build_samples(split_steps(messages), tools, source, {**fields, "instructions": instructions})


def _read_system(text: str) -> tuple[str, list[Any], str]:
    """What stands before the list of tools, the list, and what stands behind it."""
    opening = _LIST.search(text)
    if opening is None:
        raise Reject("no tool block", "system has no JSON list of tools")
    try:
        _, end = _SCANNER.raw_decode(text, opening.start())
        return text[: opening.start()], parse_json(text[opening.start() : end]), text[end:].lstrip(".")
    except (ValueError, RecursionError) as error:
        raise Reject("unreadable tool", f"the list of tools in system: {error}") from None


def _read_turn(raw: Any, number: int, names: list[str]) -> list[Message]:
    if not isinstance(raw, dict):
        raise Reject("unreadable turn", f"turn {number} should be an object, found {type(raw).__name__}")
    author, value = read_text(raw, "from"), read_text(raw, "value")
    if author == "tool":
        return read_results(value)
    if author == "user":
        return [Message("user", value)]
    if author != "assistant":
        raise Reject("unknown role", f"turn {number} is by {author!r}")
    if not looks_like_calls(value, names):
        return [Message("assistant", value)]
    try:
        return [Message("assistant", "", read_calls(value, names))]
    except ValueError as error:
        raise Reject("unreadable call", f"turn {number}: {error}") from None


_SCANNER = json.JSONDecoder(parse_int=str, parse_float=str)
