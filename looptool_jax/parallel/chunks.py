"""Stages work in fixed chunks and commit each one whole, so that a killed stage continues where it stopped."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

from looptool_jax.data.store import DataError, Progress
from looptool_jax.parallel.processes import meet, stop_if_preempted

Item = TypeVar("Item")


class Watch(Protocol):
    """Who is told how far a stage is; a console is one."""

    def expect(self, total: int, done: int = 0) -> None:
        """There are `total` items, of which an earlier process has done some."""

    def advance(self, count: int = 1) -> None:
        """`count` more items are done."""

    def tokens(self, count: int) -> None:
        """`count` more tokens were generated."""


def process_in_chunks(
    items: Sequence[Item],
    size: int,
    progress_path: str,
    work: Callable[[Sequence[Item]], list[dict[str, Any]]],
    watch: Watch,
) -> list[dict[str, Any]]:
    """Apply `work` to chunks of `size` items in order; return all rows, those of earlier attempts included.

    `work` returns any number of JSON rows for a chunk, and tells the watch what it has done. A chunk is committed
    with one append to the progress file; rows of committed chunks are read back instead of being computed again.
    Raises DataError when the progress file belongs to other work, Preempted when the machine is wanted back: behind a
    chunk, or out of `work`.
    """
    progress = Progress(progress_path)
    committed = progress.rows()
    meet(f"what is done in {progress_path}", committed)
    count = -(-len(items) // size)
    if len(committed) > count or any(row.get("chunk") != i for i, row in enumerate(committed)):
        raise DataError(f"{progress_path}: chunks do not belong to this work; delete the file to start the stage again")
    rows = [row for chunk in committed for row in chunk["rows"]]
    watch.expect(len(items), min(len(committed) * size, len(items)))
    for i in range(len(committed), count):
        chunk_rows = work(items[i * size : (i + 1) * size])
        meet(f"chunk {i} of {progress_path}", chunk_rows)
        progress.append({"chunk": i, "rows": chunk_rows})
        rows.extend(chunk_rows)
        stop_if_preempted()
    return rows
