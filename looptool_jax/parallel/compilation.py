"""Few programs are compiled: sizes come in powers of two, programs are kept on disk for the next run, and large ones
are compiled while others run."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import jax

SHORTEST_KEPT = 0.2  # seconds of compilation

_background = ThreadPoolExecutor(4, "compiling")


def keep_compiled_programs() -> None:
    """Use JAX's compilation cache, in `~/.cache/looptool-jax` unless JAX_COMPILATION_CACHE_DIR says otherwise."""
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(user_cache()))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", SHORTEST_KEPT)


def compiled_ahead(lower: Callable[[], jax.stages.Lowered]) -> Future[jax.stages.Compiled]:
    """A program that is traced and compiled in the background; its result raises what compiling it raises."""
    return _background.submit(lambda: lower().compile())


def bucket(length: int, smallest: int, longest: int) -> int:
    """The size that `length` is padded to, so that few shapes are compiled: a power of two, or the limit."""
    return min(longest, max(smallest, 1 << max(0, length - 1).bit_length()))


def user_cache() -> Path:
    """Where this program keeps what it can make again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "looptool-jax"
