"""Logs of the Model Context Protocol: one session a record, `{log: [entry, ...]}`, entries in the order of time.

An entry is a JSON-RPC 2.0 message between client and server, bare or under `message` (beside times and directions), or
a chat turn `{role, content}` by system, user or assistant: JSON-RPC alone does not say what was asked. Read are
    {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}            and its {"id": 1, "result": {"tools": [...]}}
    {"jsonrpc": "2.0", "id": 2, "method": "tools/call",
     "params": {"name": ..., "arguments": {...}}}                  and its {"id": 2, "result": {"content": [...]}}
or its `error`. Several pages and several lists of tools join. Calls that are made before any of their results has come
are one step; results are put in the order of their calls. All other methods with their responses, and notifications,
are no part of a dialogue. A server numbers its own requests (ping, roots/list), so two that are open may have one id:
the response to another method comes first, as what a server asks amid a call. One sample per assistant step.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from looptool_jax.data.files import dump_json
from looptool_jax.data.importers.common import (
    Reject,
    Source,
    build_samples,
    read_call,
    read_list,
    read_object,
    read_text,
    read_tools,
    split_steps,
)
from looptool_jax.toolcall.records import Call, Message, Role, Sample

_ROLES: dict[str, Role] = {"system": "system", "user": "user", "assistant": "assistant"}


def convert(record: dict[str, Any], source: Source) -> list[Sample]:
    """One sample per assistant step. Raises Reject."""
    session = _Session()
    for number, raw in enumerate(read_list(record.get("log"), "log"), 1):
        if not isinstance(raw, dict):
            raise Reject("unreadable entry", f"entry {number} should be an object, found {type(raw).__name__}")
        entry = raw["message"] if isinstance(raw.get("message"), dict) else raw
        try:
            session.chat(entry) if "role" in entry else session.rpc(entry)
        except Reject as reason:
            kind, _, detail = str(reason).partition(": ")
            raise Reject(kind, f"entry {number}: {detail}") from None
    session.close_step()
    fields = {key: value for key, value in record.items() if key != "log"}
    return build_samples(split_steps(session.messages), read_tools(session.tools), source, fields)


@dataclass
class _Session:
    """What the entries so far have said. `step`: calls whose results are awaited, by request id; `others`: how many
    requests of other methods are open."""

    messages: list[Message] = field(default_factory=list)
    tools: list[Any] = field(default_factory=list)
    lists: set[Any] = field(default_factory=set)
    others: Counter[Any] = field(default_factory=Counter)
    step: dict[Any, Call] = field(default_factory=dict)
    results: dict[Any, str] = field(default_factory=dict)

    def chat(self, entry: dict[str, Any]) -> None:
        role = entry["role"]
        if not isinstance(role, str) or role not in _ROLES:
            raise Reject("unknown role", f"the turn is by {role!r}")
        self.close_step()
        self.messages.append(Message(_ROLES[role], read_text(entry, "content")))

    def rpc(self, entry: dict[str, Any]) -> None:
        if entry.get("jsonrpc") != "2.0":
            raise Reject("unreadable entry", "neither a JSON-RPC 2.0 message nor a chat turn")
        method, id_ = entry.get("method"), entry.get("id")
        if id_ is not None and (isinstance(id_, bool) or not isinstance(id_, (str, int))):
            raise Reject("unreadable entry", "a JSON-RPC id is a string or a whole number")
        if method in ("tools/list", "tools/call") and id_ is None:
            raise Reject("unreadable entry", f"a {method} request needs an id")
        if method == "tools/list":
            self.lists.add(id_)
        elif method == "tools/call":
            self.call(id_, read_object(entry.get("params"), "params"))
        elif method is not None:
            self.others[id_] += id_ is not None
        elif self.others[id_]:
            self.others[id_] -= 1
        elif id_ in self.lists:
            self.lists.discard(id_)
            self.tools += read_list(read_object(entry.get("result"), "result").get("tools"), "tools")
        elif id_ in self.step:
            if id_ in self.results:
                raise Reject("turns out of order", f"the request {id_!r} is answered twice")
            self.results[id_] = _result_text(entry)

    def call(self, id_: Any, params: dict[str, Any]) -> None:
        if self.results:
            self.close_step()
        if id_ in self.step:
            raise Reject("unreadable entry", f"two open requests have the id {id_!r}")
        self.step[id_] = read_call(params)

    def close_step(self) -> None:
        """The calls that were made together become an assistant turn, and its results follow in their order."""
        if not self.step:
            return
        missing = [call.name for id_, call in self.step.items() if id_ not in self.results]
        if missing and self.results:
            raise Reject("a call without a result", ", ".join(missing))
        before = self.messages[-1] if self.messages else None
        text = ""
        if before is not None and before.role == "assistant" and not before.calls:
            text = self.messages.pop().content  # what the assistant said before it called
        self.messages.append(Message("assistant", text, tuple(self.step.values())))
        for id_, call in self.step.items():
            if id_ in self.results:
                self.messages.append(Message("tool", self.results[id_], name=call.name))
        self.step, self.results = {}, {}


def _result_text(entry: dict[str, Any]) -> str:
    """The text of a result: its text parts line by line; any other part, and an error of either kind, as JSON."""
    if "error" in entry:
        return dump_json({"error": entry["error"]}).decode()
    result = read_object(entry.get("result"), "result")
    texts = []
    for part in read_list(result.get("content"), "content"):
        text = part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None
        texts.append(text if isinstance(text, str) else dump_json(part).decode())
    if not texts and "structuredContent" in result:
        texts.append(dump_json(result["structuredContent"]).decode())
    text = "\n".join(texts)
    return dump_json({"error": text}).decode() if result.get("isError") is True else text
