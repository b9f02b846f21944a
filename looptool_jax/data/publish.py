"""Publishing: a run's data sets as one TFDS data set, and reading it back.

A round is a configuration with the split `train`, in ArrayRecord files, which `tfds.data_source` reads in random order
and without TensorFlow, and in TFRecord files, which `tfds.load` wants. Neither writing nor `read_published` imports
TensorFlow.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import struct
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import google_crc32c

from looptool_jax.data.files import PathLike, local_path, reported
from looptool_jax.data.store import DataError, exists, is_url, join, parse_json, read_samples
from looptool_jax.toolcall.records import RecordError, Sample

VERSION = "1.0.0"
SPLIT = "train"


def publish(rounds: Mapping[int, PathLike | Sequence[Sample]], out_dir: PathLike, name: str) -> str:
    """Write a TFDS data set `name`, a configuration `round_N` per round, samples in their order; return its directory.

    rounds: for each round (from 1) its samples, or the path of a sample set. The set appears whole or not at all.
    Raises DataError for a name TFDS does not take, an existing data set, unreadable samples or a failed write.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise DataError(f"{name!r} is no data set name; use small letters, digits and _, such as looptool_seed")
    if not rounds or min(rounds) < 1:
        raise DataError(f"{name}: publishing needs at least one round, counted from 1")
    if is_url(out_dir):
        raise DataError(f"{out_dir}: publishing writes to a local directory; publish there and copy the directory")
    directory = join(local_path(out_dir), name)
    if exists(directory):
        raise DataError(f"{directory}: there is a data set already; remove it, or choose another name or directory")
    sources = {number: _source(samples) for number, samples in sorted(rounds.items())}
    for number, source in sources.items():
        if next(iter(source()), None) is None:
            raise DataError(f"{name}: round {number} has no samples, and a TFDS data set cannot be empty; leave it out")
    import tensorflow_datasets as tfds

    from looptool_jax.data.tfds_builder import sample_set_builder

    tfds.disable_progress_bar()
    with reported(directory, "written"):
        local_path(out_dir).mkdir(parents=True, exist_ok=True)
        with (
            tempfile.TemporaryDirectory(dir=local_path(out_dir), prefix=f".{name}-") as partial,
            contextlib.redirect_stdout(io.StringIO()),  # TFDS announces downloads, of which there are none
        ):
            named = {config_name(number): (number, source) for number, source in sources.items()}
            build = sample_set_builder(name, VERSION, SPLIT, named)
            for config in named:
                builder = build(data_dir=partial, config=config, file_format="array_record")
                builder.download_and_prepare(download_dir=join(partial, "no_downloads"))
                _add_tfrecords(builder.data_path)
            os.rename(join(partial, name), directory)
    return directory


def read_published(out_dir: PathLike, name: str, number: int) -> Iterator[Sample]:
    """Yield the samples of a round in the order they were written.

    Raises DataError where the data set or the round is absent, or a record is damaged.
    """
    directory = join(local_path(out_dir), name)
    if not exists(directory):
        raise DataError(f"{directory}: no published data set here")
    config = config_name(number)
    if not exists(join(directory, config)):
        raise DataError(f"{directory}: the round {config} is not in it")
    import tensorflow_datasets as tfds

    try:
        source = tfds.data_source(f"{name}/{config}:{VERSION}", data_dir=local_path(out_dir), split=SPLIT)
        for index in range(len(source)):
            yield Sample.from_json(parse_json(source[index]["sample"]))
    except (RecordError, ValueError, OSError, RuntimeError, IndexError) as error:
        raise DataError(f"{directory}: {config} cannot be read ({error})") from error


def config_name(number: int) -> str:
    """The TFDS configuration of a round."""
    return f"round_{number}"


def _add_tfrecords(folder: os.PathLike[str]) -> None:
    """The records of a configuration a second time, as TFRecord files, and those named the first choice: `data_source`
    finds the ArrayRecord files beside them, `load` looks for no others."""
    from array_record.python.array_record_module import ArrayRecordReader

    for file in sorted(Path(folder).glob("*.array_record-*")):
        with open(file.with_name(file.name.replace(".array_record-", ".tfrecord-")), "wb") as out:
            for record in ArrayRecordReader(str(file)).read_all():
                length = struct.pack("<Q", len(record))
                out.write(length + _checksum(length) + record + _checksum(record))
    description = Path(folder) / "dataset_info.json"
    info = json.loads(description.read_text())
    description.write_text(json.dumps(info | {"fileFormat": "tfrecord", "alternativeFileFormats": ["array_record"]}))


def _checksum(data: bytes) -> bytes:
    """The masked CRC-32C of the TFRecord format."""
    crc = google_crc32c.value(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def _source(samples: PathLike | Sequence[Sample]) -> Callable[[], Iterable[Sample]]:
    if isinstance(samples, Sequence) and not isinstance(samples, str):
        return lambda: samples
    return partial(read_samples, samples)
