"""Publishing: a run's data sets as one TFDS data set in ArrayRecord files, and reading it back.

The result opens with plain `tfds.data_source`, in random order, without TensorFlow; neither writing nor reading
imports it.
"""

from __future__ import annotations

import contextlib
import io
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial

from looptool_jax.data.files import PathLike, local_path, reported
from looptool_jax.data.store import DataError, exists, is_url, join, parse_json, read_samples
from looptool_jax.toolcall.records import RecordError, Sample

VERSION = "1.0.0"


def publish(rounds: Mapping[int, PathLike | Sequence[Sample]], out_dir: PathLike, name: str) -> str:
    """Write a TFDS data set `name` with a split `round_N` per round, samples in their order; return its directory.

    rounds: for each round (from 1) its samples, or the path of a sample set. The set appears whole or not at all.
    Raises DataError for a name TFDS does not take, an existing data set, unreadable samples or a failed write.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise DataError(f"{name!r} is no data set name; use small letters, digits and _, such as looptool_seed")
    if not rounds or min(rounds) < 1:
        raise DataError(f"{name}: publishing needs at least one round, counted from 1")
    if is_url(out_dir):
        raise DataError(f"{out_dir}: publishing writes to a local directory; publish there and copy the directory")
    directory = join(local_path(out_dir), name, VERSION)
    if exists(directory):
        raise DataError(f"{directory}: there is a data set already; remove it, or choose another name or directory")
    sources = {number: _source(samples) for number, samples in sorted(rounds.items())}
    for number, source in sources.items():
        if next(iter(source()), None) is None:
            raise DataError(f"{name}: round {number} has no samples, and a TFDS split cannot be empty; leave it out")
    import tensorflow_datasets as tfds

    from looptool_jax.data.tfds_builder import SampleSetBuilder

    tfds.disable_progress_bar()
    builder = SampleSetBuilder(name, VERSION, local_path(out_dir), sources)
    with (
        reported(directory, "written"),
        tempfile.TemporaryDirectory() as no_downloads,
        contextlib.redirect_stdout(io.StringIO()),  # TFDS announces downloads, of which there are none
    ):
        builder.download_and_prepare(download_dir=no_downloads)
    return directory


def read_published(out_dir: PathLike, name: str, number: int) -> Iterator[Sample]:
    """Yield the samples of a round in the order they were written.

    Raises DataError where the data set or the round is absent, or a record is damaged.
    """
    directory = join(local_path(out_dir), name, VERSION)
    if not exists(join(directory, "dataset_info.json")):
        raise DataError(f"{directory}: no published data set here")
    import tensorflow_datasets as tfds

    split = split_name(number)
    try:
        source = tfds.data_source(f"{name}:{VERSION}", data_dir=local_path(out_dir), split=split)
        for index in range(len(source)):
            yield Sample.from_json(parse_json(source[index]["sample"]))
    except (RecordError, ValueError, OSError, RuntimeError, IndexError) as error:
        raise DataError(f"{directory}: split {split} cannot be read ({error})") from error


def split_name(number: int) -> str:
    """The TFDS split of a round."""
    return f"round_{number}"


def _source(samples: PathLike | Sequence[Sample]) -> Callable[[], Iterable[Sample]]:
    if isinstance(samples, Sequence) and not isinstance(samples, str):
        return lambda: samples
    return partial(read_samples, samples)
