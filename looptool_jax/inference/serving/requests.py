"""Bodies of requests in OpenAI's words, read into what the engine is to do; what it cannot do is refused by name.

Nothing that would change an answer is passed over in silence: a field is honoured, or known to say nothing about the
answer (`NEUTRAL`), or has the value that means "off", or the request is refused.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from looptool_jax.data.importers.common import Reject, distinct_tools, printable, read_tools
from looptool_jax.data.importers.openai import read_messages
from looptool_jax.inference.batch import Request, RequestError, check
from looptool_jax.inference.grammar import Constraint, GrammarError, Grammars
from looptool_jax.inference.serving.replies import ChatReader
from looptool_jax.toolcall import ChatError, ChatTokenizer, Tool

if TYPE_CHECKING:
    from looptool_jax.inference.engine import DecoderEngine

MAX_TEMPERATURE = 2.0
MAX_STOPS, MAX_STOP_LENGTH = 4, 200

NEUTRAL = ("user", "metadata", "service_tier", "safety_identifier", "prompt_cache_key", "store")
OFF: Mapping[str, tuple[Any, ...]] = {
    "frequency_penalty": (0,), "presence_penalty": (0,), "logit_bias": ({},), "top_logprobs": (0,), "echo": (False,),
    "best_of": (1,), "suffix": ("",),
    "modalities": (["text"],),
}  # fmt: skip
COMMON = ("model", "n", "seed", "stop", "stream", "stream_options", "temperature", "top_p", "top_k", "max_tokens")
OF_CHATS = (
    *COMMON, "messages", "tools", "tool_choice", "parallel_tool_calls", "response_format", "max_completion_tokens",
    "logprobs",
)  # fmt: skip
OF_COMPLETIONS = (*COMMON, "prompt", "logprobs")


class ApiError(ValueError):
    """A request that gets an error: status and OpenAI's fields of an error."""

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.param, self.code = status, param, code

    def body(self) -> dict[str, Any]:
        kinds = {401: "authentication_error", 429: "rate_limit_error"}
        kind = kinds.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


@dataclass(frozen=True)
class Served:
    """A model as clients see it. thinking: whether it may think before it answers in chats. grammars: None where the
    extra is not installed."""

    name: str
    tokenizer: ChatTokenizer
    engine: DecoderEngine
    thinking: bool
    grammars: Grammars | None


@dataclass(frozen=True)
class Asked:
    """What one request wants. n: answers. reader: of chat replies; None: plain text. usage_too: at a stream's end.
    constraint: the grammar of the answers."""

    request: Request
    n: int
    stop: tuple[str, ...]
    logprobs: bool
    stream: bool
    usage_too: bool
    reader: ChatReader | None
    constraint: Constraint | None


def read_chat(body: Any, served: Served) -> Asked:
    """A request for a chat reply. Raises ApiError."""
    body = _object(body, served, OF_CHATS)
    tools = _tools(body)
    grammar = _grammar(body, tools, served)
    thinking = served.thinking and grammar is None
    if not isinstance(body.get("messages"), list):
        raise ApiError(400, "messages: expected a list of messages", "messages")
    try:
        messages = read_messages(body["messages"])
        _check_size(served.tokenizer.format.render(messages, tools, thinking=thinking), served, "messages")
        prompt = served.tokenizer.encode_prompt(messages, tools, thinking)
    except (Reject, ChatError) as error:
        raise ApiError(400, f"messages: {error}", "messages") from None
    most = "max_completion_tokens" if "max_completion_tokens" in body else "max_tokens"
    reader = ChatReader(served.tokenizer, bool(tools), thinking)
    return _asked(body, served, prompt, most, _flag(body, "logprobs"), reader, grammar)


def read_completion(body: Any, served: Served) -> Asked:
    """A request to go on with a prompt: token ids, or text as it is, in which control tokens are control tokens.
    Raises ApiError."""
    body = _object(body, served, OF_COMPLETIONS)
    prompt = body.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str | list):
        prompt = prompt[0]
    if isinstance(prompt, str):
        _check_size(prompt, served, "prompt")
        try:
            ids = served.tokenizer.tokenizer.encode(prompt, add_special_tokens=False).ids
        except (TypeError, UnicodeEncodeError):
            raise ApiError(400, "prompt: text with half a surrogate pair cannot be tokenised", "prompt") from None
    elif isinstance(prompt, list) and all(_is_integer(token) for token in prompt):
        ids = prompt
    else:
        raise ApiError(400, "prompt: expected one text, or one list of token ids", "prompt")
    logprobs = _integer(body, "logprobs", None, 0, 0, " (log-probs of the chosen tokens; of others there are none)")
    return _asked(body, served, ids, "max_tokens", logprobs is not None)


def _asked(
    body: dict[str, Any],
    served: Served,
    prompt: list[int],
    most: str,
    logprobs: bool,
    reader: ChatReader | None = None,
    grammar: str | None = None,
) -> Asked:
    engine = served.engine
    if len(prompt) > engine.prompt_len:
        raise _too_long(f"{len(prompt)}", engine, "messages" if reader else "prompt")
    max_new = min(_integer(body, most, engine.answer_len, 1, 2**31), engine.answer_len)
    n = _integer(body, "n", 1, 1, engine.group, " (looptool serve --group)")
    temperature = _number(body, "temperature", 1.0, 0.0, MAX_TEMPERATURE)
    _check_limits(body, engine, temperature)
    seed = _integer(body, "seed", None, -(2**63), 2**64 - 1)
    bits = secrets.randbits(64) if seed is None else seed % 2**64
    stream, options = _flag(body, "stream"), body.get("stream_options")
    if options is not None and not (stream and isinstance(options, dict)):
        raise ApiError(400, "stream_options: expected an object, and stream to be true", "stream_options")
    usage_too = _flag(options or {}, "include_usage")
    request = Request("request", prompt, (bits >> 32, bits & 0xFFFFFFFF), temperature, max_new)
    try:
        check(engine, request)
    except RequestError as error:
        raise ApiError(400, str(error).partition(": ")[2], "messages" if reader else "prompt") from None
    constraint = None
    if grammar is not None and served.grammars is not None:
        try:
            constraint = served.grammars.constraint(grammar, n)
        except GrammarError as error:
            param = "tools" if "tools" in body else "response_format"
            raise ApiError(400, f"{param}: no grammar can be made of this schema ({error})", param) from None
    return Asked(request, n, _stops(body), logprobs, stream, usage_too, reader, constraint)


def _check_size(text: str, served: Served, param: str) -> None:
    """Raises ApiError where a prompt is too long whatever its tokens are: tokenising megabytes holds up all others."""
    fewest = served.tokenizer.fewest_tokens(text)
    if fewest > served.engine.prompt_len:
        raise _too_long(f"at least {fewest}", served.engine, param)


def _too_long(tokens: str, engine: DecoderEngine, param: str) -> ApiError:
    return ApiError(
        400, f"the prompt has {tokens} tokens; the context length of this server is {engine.prompt_len} for prompts, "
        f"and {engine.answer_len} for answers", param, "context_length_exceeded",
    )  # fmt: skip


def _object(body: Any, served: Served, known: tuple[str, ...]) -> dict[str, Any]:
    """The fields that are set. Raises ApiError where one is unknown, asks for what there is not, or names another
    model."""
    if not isinstance(body, dict):
        raise ApiError(400, f"the body must be a JSON object, found {type(body).__name__}")
    given = {name: value for name, value in body.items() if value is not None}
    for name, value in given.items():
        if name in known or name in NEUTRAL:
            continue
        if name not in OFF:
            raise ApiError(400, f"{printable(name)[:80]}: no such field is known here; leave it out", printable(name))
        if not any(value == off and isinstance(value, bool) == isinstance(off, bool) for off in OFF[name]):
            raise ApiError(400, f"{name}: not supported by this server; leave it out", name)
    model = given.get("model")
    if not isinstance(model, str):
        raise ApiError(400, f"model: expected the name of the model here, {served.name}", "model")
    if model != served.name:
        raise ApiError(
            404, f"the model {printable(model)[:200]!r} is not here; this server has {served.name}", "model",
            "model_not_found",
        )  # fmt: skip
    return given


def _tools(body: dict[str, Any]) -> tuple[Tool, ...]:
    """The tools that the reply may call."""
    raw, choice = body.get("tools", []), body.get("tool_choice", "auto")
    if not isinstance(raw, list):
        raise ApiError(400, f"tools: expected a list, found {type(raw).__name__}", "tools")
    try:
        tools = distinct_tools(read_tools([_without_optional(document) for document in raw]))
    except Reject as error:
        raise ApiError(400, f"tools: {error}", "tools") from None
    if choice not in ("auto", "none", "required") and not isinstance(choice, dict):
        raise ApiError(400, 'tool_choice: expected "auto", "none", "required" or a function', "tool_choice")
    return () if choice == "none" else tools


def _without_optional(document: Any) -> Any:
    """The document, whose list of required parameters decides: clients pass on documents that say `optional`, which is
    no word of JSON Schema, of such a parameter."""
    try:
        function = document["function"]
        parameters = function["parameters"]
        listed = {
            name: {key: value for key, value in parameters["properties"][name].items() if key != "optional"}
            for name in parameters["required"]
        }
        properties = {name: listed.get(name, each) for name, each in parameters["properties"].items()}
    except (TypeError, KeyError, AttributeError):
        return document
    return {**document, "function": {**function, "parameters": {**parameters, "properties": properties}}}


def _grammar(body: dict[str, Any], tools: tuple[Tool, ...], served: Served) -> str | None:
    """The grammar of the reply, where the request wants one."""
    choice, several = body.get("tool_choice"), _flag(body, "parallel_tool_calls", True)
    called = tools if choice == "required" else ()
    if isinstance(choice, dict):
        function = choice.get("function")
        name = function.get("name") if isinstance(function, dict) else None
        called, several = tuple(tool for tool in tools if tool.name == name), False
    schema = _schema(body.get("response_format", {"type": "text"}))
    if called == () and (choice == "required" or isinstance(choice, dict)):
        raise ApiError(400, "tool_choice: tools has no such function", "tool_choice")
    if tools and not called and not several:
        raise ApiError(400, "parallel_tool_calls: false only where tool_choice asks for a call", "parallel_tool_calls")
    if schema is not None and tools:
        raise ApiError(400, "response_format: not together with tools", "response_format")
    if not called and schema is None:
        return None
    param = "tool_choice" if called else "response_format"
    if served.grammars is None:
        raise ApiError(400, f"{param}: this server has no grammars; install looptool-jax[grammar] there", param)
    return served.grammars.of_json(schema) if schema is not None else served.grammars.of_calls(called, several)


def _schema(form: Any) -> dict[str, Any] | None:
    """The schema that `response_format` names; None: text."""
    kind = form.get("type") if isinstance(form, dict) else None
    if kind == "text":
        return None
    if kind == "json_object":
        return {"type": "object"}
    schema = form.get("json_schema") if kind == "json_schema" else None
    schema = schema.get("schema") if isinstance(schema, dict) else None
    if not isinstance(schema, dict):
        raise ApiError(
            400, 'response_format: expected {"type": "text"}, {"type": "json_object"}, or {"type": "json_schema", '
            '"json_schema": {"schema": ...}}', "response_format",
        )  # fmt: skip
    return schema


def _check_limits(body: dict[str, Any], engine: DecoderEngine, temperature: float) -> None:
    """top_p and top_k are compiled into the engine. Greedy answers are the same with any."""
    top_p = _number(body, "top_p", engine.top_p, 0.0, 1.0)
    top_k = _integer(body, "top_k", engine.top_k, -1, 2**31)
    if temperature == 0:
        return
    for name, asked, compiled in (("top_p", top_p, engine.top_p), ("top_k", max(top_k, 0), engine.top_k)):
        if asked != compiled:
            option = f"--{name.replace('_', '-')}"
            raise ApiError(
                400, f"{name}: this server draws with {name}={compiled}; leave it out, use temperature 0, or start the "
                f"server with {option} {asked}", name,
            )  # fmt: skip


def _stops(body: dict[str, Any]) -> tuple[str, ...]:
    raw = body.get("stop", [])
    stops = [raw] if isinstance(raw, str) else raw
    fits = isinstance(stops, list) and len(stops) <= MAX_STOPS
    if not fits or not all(isinstance(stop, str) and 0 < len(stop) <= MAX_STOP_LENGTH for stop in stops):
        raise ApiError(400, f"stop: expected up to {MAX_STOPS} texts of 1 to {MAX_STOP_LENGTH} characters", "stop")
    return tuple(stops)


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _integer(body: dict[str, Any], name: str, default: Any, low: int, high: int, why: str = "") -> Any:
    value = body.get(name, default)
    if value is None or (_is_integer(value) and low <= value <= high):
        return value
    among = f"{low}" if low == high else f"an integer from {low} to {high}"
    raise ApiError(400, f"{name}: expected {among}{why}", name)


def _number(body: dict[str, Any], name: str, default: float, low: float, high: float) -> float:
    value = body.get(name, default)
    if isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high and math.isfinite(value):
        return float(value)
    raise ApiError(400, f"{name}: expected a number from {low:g} to {high:g}", name)


def _flag(body: dict[str, Any], name: str, default: bool = False) -> bool:
    value = body.get(name, default)
    if not isinstance(value, bool):
        raise ApiError(400, f"{name}: expected true or false", name)
    return value
