"""Checks of numbers in a configuration; the messages name the key."""

from __future__ import annotations


def at_least(key: str, value: float, low: float) -> None:
    """Raises ValueError where the value of `key` is below `low`, or not a number."""
    if not value >= low:
        raise ValueError(f"{key}: at least {low}, found {value}")


def above(key: str, value: float, low: float) -> None:
    """Raises ValueError where the value of `key` is not above `low`."""
    if not value > low:
        raise ValueError(f"{key}: more than {low}, found {value}")
