"""The records everything else speaks in: tools, calls, messages, targets, samples.

All records are frozen dataclasses that travel as JSON (`to_json` / `from_json`). A sample is one
assistant step with an offline context: tools T, context c_t and reference step a*_t (paper, section 3).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

Role = Literal["system", "user", "assistant", "tool"]
Intent = Literal["clarify", "refuse", "answer"]
OriginKind = Literal["seed", "seed_new", "error", "expanded", "high_ppl", "mastered", "repeated"]

ROLES: tuple[Role, ...] = ("system", "user", "assistant", "tool")
INTENTS: tuple[Intent, ...] = ("clarify", "refuse", "answer")


class RecordError(ValueError):
    """A record that cannot be read; the message says which field and what was expected."""


@dataclass(frozen=True)
class Call:
    """One tool call: a tool's name and its arguments (a JSON object)."""

    name: str
    arguments: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "arguments": self.arguments}

    @staticmethod
    def from_json(raw: Any) -> Call:
        raw = _object(raw, "call")
        return Call(_string(raw, "name"), _object(raw.get("arguments", {}), "arguments"))


@dataclass(frozen=True)
class Tool:
    """A tool document. `parameters` is a normalised JSON Schema of type object."""

    name: str
    description: str = ""
    parameters: dict[str, Any] = field(default_factory=lambda: {"type": "object", "properties": {}})

    @property
    def properties(self) -> dict[str, Any]:
        return self.parameters.get("properties", {})

    @property
    def required(self) -> tuple[str, ...]:
        return tuple(self.parameters.get("required", ()))

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "description": self.description, "parameters": self.parameters}

    @staticmethod
    def from_json(raw: Any) -> Tool:
        raw = _object(raw, "tool")
        parameters = _object(raw.get("parameters", {"type": "object", "properties": {}}), "parameters")
        _object(parameters.get("properties", {}), "parameters.properties")
        _strings(parameters.get("required", []), "parameters.required")
        return Tool(_string(raw, "name"), _string(raw, "description", ""), parameters)


@dataclass(frozen=True)
class Message:
    """One turn. `calls` is for the assistant; `name` is the tool a tool message answers for."""

    role: Role
    content: str = ""
    calls: tuple[Call, ...] = ()
    name: str = ""
    reasoning: str = ""

    def to_json(self) -> dict[str, Any]:
        out: dict[str, Any] = {"role": self.role, "content": self.content}
        if self.calls:
            out["calls"] = [call.to_json() for call in self.calls]
        if self.name:
            out["name"] = self.name
        if self.reasoning:
            out["reasoning"] = self.reasoning
        return out

    @staticmethod
    def from_json(raw: Any) -> Message:
        raw = _object(raw, "message")
        role = _choice(raw, "role", ROLES)
        calls = tuple(Call.from_json(call) for call in _list(raw.get("calls", []), "calls"))
        content, name, reasoning = (_string(raw, key, "") for key in ("content", "name", "reasoning"))
        return Message(role, content, calls, name, reasoning)


@dataclass(frozen=True)
class Target:
    """The reference step: a list of calls, or a text with its intent.

    `alternatives` holds further accepted call lists (benchmarks have them). `missing` names the
    parameters that a clarifying text has to ask for.
    """

    calls: tuple[Call, ...] = ()
    text: str = ""
    intent: Intent | None = None
    missing: tuple[str, ...] = ()
    alternatives: tuple[tuple[Call, ...], ...] = ()

    def __post_init__(self) -> None:
        if not self.calls and self.intent is None:
            raise RecordError("a target needs calls, or a text with an intent (clarify, refuse, answer)")
        if self.calls and self.intent is not None:
            raise RecordError("a target with calls has no intent; intents are for text targets")

    @property
    def is_call(self) -> bool:
        return bool(self.calls)

    def to_json(self) -> dict[str, Any]:
        out: dict[str, Any] = {}
        if self.calls:
            out["calls"] = [call.to_json() for call in self.calls]
        if self.text or not self.calls:
            out["text"] = self.text
        if self.intent:
            out["intent"] = self.intent
        if self.missing:
            out["missing"] = list(self.missing)
        if self.alternatives:
            out["alternatives"] = [[call.to_json() for call in calls] for calls in self.alternatives]
        return out

    @staticmethod
    def from_json(raw: Any) -> Target:
        raw = _object(raw, "target")
        return Target(
            calls=tuple(Call.from_json(call) for call in _list(raw.get("calls", []), "calls")),
            text=_string(raw, "text", ""),
            intent=_choice(raw, "intent", INTENTS) if raw.get("intent") is not None else None,
            missing=tuple(_strings(raw.get("missing", []), "missing")),
            alternatives=tuple(
                tuple(Call.from_json(call) for call in _list(calls, "alternatives"))
                for calls in _list(raw.get("alternatives", []), "alternatives")
            ),
        )


@dataclass(frozen=True)
class Origin:
    """Why a sample is in a round's data set (paper, section 4.5).

    kind: seed (D_1), seed_new, error (error seed, with its verdict), expanded (with its parent), high_ppl,
    mastered (fills a part that stayed empty) or repeated (error-seed repetition, an ablation).
    round: the round whose data set it entered, from 1. perplexity: of the probed answer (Eq. 3).
    """

    kind: OriginKind = "seed"
    round: int = 1
    parent: str | None = None
    verdict: str | None = None
    perplexity: float | None = None
    scenario: str | None = None

    def to_json(self) -> dict[str, Any]:
        out: dict[str, Any] = {"kind": self.kind, "round": self.round}
        for key in ("parent", "verdict", "perplexity", "scenario"):
            if getattr(self, key) is not None:
                out[key] = getattr(self, key)
        return out

    @staticmethod
    def from_json(raw: Any) -> Origin:
        raw = _object(raw, "origin")
        kinds = OriginKind.__args__  # type: ignore[attr-defined]
        number = raw.get("round", 1)
        if isinstance(number, bool) or not isinstance(number, int):
            raise RecordError(f"origin.round: expected an integer, found {number!r}")
        return Origin(
            _choice(raw, "kind", kinds), number, raw.get("parent"), raw.get("verdict"), raw.get("perplexity"),
            raw.get("scenario"),
        )  # fmt: skip


@dataclass(frozen=True)
class Sample:
    """One training or evaluation item.

    category: what is being tested (single, parallel, missing_parameter, ...), for tables only.
    lineage: every earlier origin of the sample, oldest first. extra: source fields nobody here reads,
    kept so that nothing is lost on the way.
    """

    id: str
    tools: tuple[Tool, ...]
    messages: tuple[Message, ...]
    target: Target
    origin: Origin = Origin()
    category: str = ""
    lineage: tuple[Origin, ...] = ()
    extra: dict[str, Any] = field(default_factory=dict)

    def moved(self, origin: Origin) -> Sample:
        """The same sample entering another data set: the present origin joins the lineage."""
        return replace(self, origin=origin, lineage=(*self.lineage, self.origin))

    def to_json(self) -> dict[str, Any]:
        out: dict[str, Any] = {
            "id": self.id,
            "category": self.category,
            "tools": [tool.to_json() for tool in self.tools],
            "messages": [message.to_json() for message in self.messages],
            "target": self.target.to_json(),
            "origin": self.origin.to_json(),
        }
        if self.lineage:
            out["lineage"] = [origin.to_json() for origin in self.lineage]
        if self.extra:
            out["extra"] = self.extra
        return out

    @staticmethod
    def from_json(raw: Any) -> Sample:
        """Read a sample. Raises RecordError naming the field that does not fit."""
        raw = _object(raw, "sample")
        return Sample(
            id=_string(raw, "id"),
            tools=tuple(Tool.from_json(tool) for tool in _list(raw.get("tools", []), "tools")),
            messages=tuple(Message.from_json(message) for message in _list(raw.get("messages", []), "messages")),
            target=Target.from_json(raw.get("target")),
            origin=Origin.from_json(raw.get("origin", {"kind": "seed"})),
            category=_string(raw, "category", ""),
            lineage=tuple(Origin.from_json(origin) for origin in _list(raw.get("lineage", []), "lineage")),
            extra=_object(raw.get("extra", {}), "extra"),
        )


def _object(raw: Any, name: str) -> dict[str, Any]:
    if not isinstance(raw, dict):
        raise RecordError(f"{name}: expected an object, found {type(raw).__name__}")
    return raw


def _list(raw: Any, name: str) -> list[Any]:
    if not isinstance(raw, list):
        raise RecordError(f"{name}: expected a list, found {type(raw).__name__}")
    return raw


def _strings(raw: Any, name: str) -> list[str]:
    values = _list(raw, name)
    if not all(isinstance(value, str) for value in values):
        raise RecordError(f"{name}: expected a list of strings")
    return values


def _string(raw: dict[str, Any], key: str, default: str | None = None) -> str:
    value = raw.get(key, default)
    if not isinstance(value, str):
        raise RecordError(f"{key}: expected a string, found {type(value).__name__}")
    return value


def _choice(raw: dict[str, Any], key: str, choices: tuple[str, ...]) -> Any:
    value = raw.get(key)
    if value not in choices:
        raise RecordError(f"{key}: expected one of {', '.join(choices)}, found {value!r}")
    return value
