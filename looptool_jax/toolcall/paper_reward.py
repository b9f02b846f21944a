"""The released LoopTool reward, holes included, for parity runs. Nothing else should use it.

Behaviour of the released code with its published switches (reward 1 or 0, version 1, no format or length term):
tags are found by a regex in the raw text, think block included; lists and the calls themselves compare as sets,
provided that there are equally many calls; true, 1 and 1.0 are one value; text labels accept any text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Hashable
from typing import Any

_BLOCK = re.compile(r"<tool_call>\n(.*?)\n</tool_call>", re.DOTALL)


def released_reward(response: str, label: str) -> float:
    """1.0 or 0.0 for an answer's raw text against the label's raw text. Never raises on strings."""
    response = response.split("<|im_start|>assistant")[-1].split("<|im_end|>")[0].strip()
    if "<tool_call>" not in label:
        return float("<tool_call>" not in response and "</tool_call>" not in response)
    if "<tool_call>" not in response or "</tool_call>" not in response:
        return 0.0
    wanted, found = _blocks(label), _blocks(response)
    try:
        return float(len(wanted) == len(found) and _as_set(wanted) == _as_set(found))
    except RecursionError:
        return 0.0


def _blocks(text: str) -> list[Any]:
    """The content of each block: JSON where it can be read, else the string itself."""
    out = []
    for block in _BLOCK.findall(text):
        try:
            out.append(json.loads(block))
        except (ValueError, RecursionError):
            out.append(block)
    return out


def _as_set(value: Any) -> Hashable:
    if isinstance(value, dict):
        return frozenset((key, _as_set(item)) for key, item in value.items())
    if isinstance(value, list):
        return frozenset(_as_set(item) for item in value)
    return value
