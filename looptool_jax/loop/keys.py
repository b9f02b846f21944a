"""Random keys derived from what they are for, never from the order in which things happened."""

from __future__ import annotations

import hashlib
import random


def key_for(*purpose: str | int) -> tuple[int, int]:
    """Two uint32 words from a purpose such as (run seed, round, stage, sample id, group index)."""
    digest = _digest(purpose)
    return int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:8], "little")


def random_for(*purpose: str | int) -> random.Random:
    """A Python random generator for one purpose."""
    return random.Random(int.from_bytes(_digest(purpose), "little"))


def _digest(purpose: tuple[str | int, ...]) -> bytes:
    return hashlib.sha256("\x1f".join(str(part) for part in purpose).encode()).digest()
