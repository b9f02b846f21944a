"""Rows of data sets that others prepared: `tfds:NAME[/CONFIG][:VERSION][#SPLIT]` and `hf:NAME[:CONFIG][#SPLIT]`.

NAME of `tfds:` is a data set in TFDS's own folder (TFDS_DATA_DIR), or the folder of one; it has to be prepared. NAME of
`hf:` is a data set on the Hugging Face Hub or in its cache, or a folder: one written by `save_to_disk`, or one with
parquet, arrow, JSON or CSV files. Without a split it is `train`, or the only one there is. TensorFlow is imported where
a TFDS data set has no ArrayRecord files, and nowhere else.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from looptool_jax.data.files import DataError, PathLike

TFDS, HF = "tfds:", "hf:"
_DEFAULT_SPLIT = "train"


def is_data_set(path: PathLike) -> bool:
    """Whether a path names a data set, and no file."""
    return str(path).startswith((TFDS, HF))


def data_set_values(source: PathLike) -> Iterator[dict[str, Any]]:
    """The rows of a data set, as JSON values but for bytes. Raises DataError: it or its split cannot be read."""
    kind, _, name = str(source).partition(":")
    name, _, split = name.partition("#")
    if not name:
        raise DataError(f"{source}: names no data set; give it as {kind}:NAME")
    return _tfds(str(source), name, split) if f"{kind}:" == TFDS else _hf(str(source), name, split)


def _tfds(source: str, name: str, split: str) -> Iterator[dict[str, Any]]:
    import tensorflow_datasets as tfds

    try:
        folder = _prepared(name)
        builder = tfds.builder_from_directory(folder) if folder else tfds.builder(name, try_gcs=False)
        features, splits = builder.info.features, builder.info.splits
    except Exception as error:  # the library raises of many kinds
        raise DataError(f"{source}: no such TFDS data set ({_first_line(error)})") from None
    if not splits:
        raise DataError(f"{source}: this data set is not prepared; prepare it (tfds build), or give its folder")
    split = _choose(source, split, splits)
    try:
        if any(each.value == "array_record" for each in builder.info.available_file_formats()):
            data = builder.as_data_source(split=split)
        else:
            data = tfds.as_numpy(builder.as_dataset(split=split))
        for row in data:
            yield _plain(row, features)
    except ImportError:
        raise DataError(f"{source}: it has TFRecord files only, which TensorFlow reads; install tensorflow") from None
    except (OSError, ValueError, RuntimeError, IndexError, NotImplementedError) as error:
        raise DataError(f"{source}: the split {split} cannot be read ({_first_line(error)})") from None


def _prepared(name: str) -> str | None:
    """The folder of a prepared data set, where the name is one (FOLDER:VERSION too), or one with a folder for each of
    its versions; then the last."""
    folder = Path(name) if Path(name).is_dir() else Path(*name.rsplit(":", 1))
    if (folder / "dataset_info.json").is_file():
        return str(folder)
    versions = [file.parent for file in folder.glob("*/dataset_info.json")]
    return str(max(versions, key=_version)) if versions else None


def _version(folder: Path) -> list[int]:
    """The numbers of a version, which a text does not sort by."""
    return [int(part) if part.isdecimal() else -1 for part in folder.name.split(".")]


def _plain(value: Any, feature: Any) -> Any:
    """A TFDS example as JSON values; a sequence of records, which TFDS gives as a record of sequences, is one again."""
    import numpy as np

    if isinstance(value, dict):
        inner = getattr(feature, "feature", None)
        if inner is None:
            return {key: _plain(item, feature[key]) for key, item in value.items()}
        return [_plain(_at(value, index), inner) for index in range(_length(value))]
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    return [_plain(item, feature) for item in value] if isinstance(value, list | tuple) else value


def _at(columns: dict[str, Any], index: int) -> dict[str, Any]:
    """One record of a record of sequences."""
    return {key: _at(item, index) if isinstance(item, dict) else item[index] for key, item in columns.items()}


def _length(columns: dict[str, Any]) -> int:
    first = next(iter(columns.values()))
    return _length(first) if isinstance(first, dict) else len(first)


def _hf(source: str, name: str, split: str) -> Iterator[dict[str, Any]]:
    try:
        import datasets
        import huggingface_hub
    except ImportError:
        raise DataError(f"{source}: reading Hugging Face data sets needs datasets; install looptool-jax[hf]") from None

    datasets.disable_progress_bars()
    huggingface_hub.logging.set_verbosity_error()  # it also logs what it raises
    try:
        if os.path.isdir(name):
            saved = any(os.path.isfile(os.path.join(name, file)) for file in ("state.json", "dataset_dict.json"))
            found = datasets.load_from_disk(name) if saved else datasets.load_dataset(name)
        else:
            name, _, config = name.partition(":")
            found = datasets.load_dataset(name, config or None)
        if isinstance(found, datasets.DatasetDict):
            found = found[_choose(source, split, found)]
        elif split:
            raise DataError(f"{source}: it has no splits; leave #{split} away")
        for batch in found.with_format("arrow").iter(batch_size=1024):
            yield from batch.to_pylist()
    except DataError:
        raise
    except Exception as error:  # the library raises of many kinds
        raise DataError(f"{source}: no readable data set ({_first_line(error)})") from None


def _choose(source: str, split: str, splits: Collection[str]) -> str:
    """The split that is named, `train`, or the only one."""
    names = list(splits)
    if not split and len(names) == 1:
        return names[0]
    if (chosen := split or _DEFAULT_SPLIT) not in names:
        raise DataError(f"{source}: there is no split {chosen}; name one of {', '.join(names)} behind a #")
    return chosen


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
