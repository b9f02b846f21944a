"""Wrong responses to a sample, of the kinds that careless labels and small models produce."""

from __future__ import annotations

import re
from random import Random
from typing import Any

from looptool_jax.toolcall import Call, Sample, Target, get_format, match
from looptool_jax.world import WorldError, corrupt


def wrong_response(sample: Sample, rng: Random) -> str | None:
    """A response, as an assistant writes it, that the matcher rejects; None where none came up.

    Half of those with calls are damaged as a small model damages them (a value mangled or taken from elsewhere), all
    others corrupted as the world's noise is.
    """
    if sample.target.is_call and rng.random() < 0.5:
        for _ in range(4):
            text = _written(Target(_damaged_calls(sample, rng)))
            if not match(text, sample.target, sample.tools).ok:
                return text
    try:
        return _written(corrupt(sample.target, sample.tools, sample.messages, rng)[0])
    except WorldError:
        return None


def _written(target: Target) -> str:
    return get_format("qwen3").render_target(target)


def _damaged_calls(sample: Sample, rng: Random) -> tuple[Call, ...]:
    """The target's calls with one value changed, or two values of a call exchanged."""
    calls = list(sample.target.calls)
    i = rng.randrange(len(calls))
    arguments = calls[i].arguments
    if not arguments:
        return sample.target.calls
    key = rng.choice(list(arguments))
    twins = [other for other in arguments if other != key and type(arguments[other]) is type(arguments[key])]
    if twins and rng.random() < 0.25:
        other = rng.choice(twins)
        changed = {key: arguments[other], other: arguments[key]}
    else:
        changed = {key: _other_value(arguments[key], sample, rng)}
    calls[i] = Call(calls[i].name, arguments | changed)
    return tuple(calls)


def _other_value(value: Any, sample: Sample, rng: Random) -> Any:
    """Another value of the same JSON type."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return int(re.sub(r"\D", "", _mangled(str(value), rng)) or "1")
    if isinstance(value, float):
        return round(value + rng.choice([-10, -1, -0.1, 0.1, 1, 10]), 2)
    if isinstance(value, list) and value:
        i = rng.randrange(len(value))
        return [*value[:i], _other_value(value[i], sample, rng), *value[i + 1 :]]
    if isinstance(value, dict) and value:
        key = rng.choice(list(value))
        return value | {key: _other_value(value[key], sample, rng)}
    if isinstance(value, str) and value:
        return _words_of(sample, len(value.split()), rng) if rng.random() < 0.3 else _mangled(value, rng)
    return value


def _mangled(text: str, rng: Random) -> str:
    """The text with one piece (word, digit) dropped, doubled or exchanged."""
    pieces = re.findall(r"\d|[^\W\d]+|\W", text)
    places = [i for i, piece in enumerate(pieces) if piece.isalnum()]
    if not places:
        return text
    i = rng.choice(places)
    kind = rng.choice(["drop", "double", "exchange", "exchange"])
    if kind == "double":
        pieces.insert(i, pieces[i])
    elif pieces[i].isdigit():
        pieces[i] = "" if kind == "drop" else rng.choice("0123456789")
    elif kind == "drop" and len(places) > 1:
        pieces[i] = ""
    else:
        cut = rng.randrange(len(pieces[i]))
        pieces[i] = pieces[i][:cut] + rng.choice("aeiourstln") + pieces[i][cut + rng.randrange(2) :]
    return "".join(pieces).strip()


def _words_of(sample: Sample, count: int, rng: Random) -> str:
    """`count` words in a row of what the user said last."""
    words = re.findall(r"[\w@.:'-]*\w", sample.messages[-1].content) or ["?"]
    start = rng.randrange(max(1, len(words) - count + 1))
    return " ".join(words[start : start + count])
