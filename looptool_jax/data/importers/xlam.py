"""xLAM and APIGen: `{query, tools, answers}`, the last two as JSON strings or lists.

tools: `{name, description, parameters: {p: {type: "str, optional", description, default}}}`. answers: `{name,
arguments}` calls, all of one step. A row without calls has no text either, so it is no label. The dialogues of
APIGen-MT are of the format sharegpt.
"""

from __future__ import annotations

from typing import Any

from looptool_jax.data.importers.common import (
    Reject,
    Source,
    Step,
    answer_target,
    build_samples,
    read_call,
    read_list,
    read_text,
    read_tools,
)
from looptool_jax.toolcall.records import Message, Sample


def convert(record: dict[str, Any], source: Source) -> list[Sample]:
    """One sample per record. Raises Reject."""
    query = read_text(record, "query")
    if not query.strip():
        raise Reject("empty user turn", "query")
    calls = tuple(read_call(raw) for raw in read_list(record.get("answers"), "answers"))
    if not calls:
        raise Reject("no label", "answers is empty, and xLAM has no texts")
    fields = {key: value for key, value in record.items() if key not in ("query", "tools", "answers")}
    step = Step((Message("user", query),), answer_target(calls, ""))
    return build_samples([step], read_tools(record.get("tools")), source, fields)
