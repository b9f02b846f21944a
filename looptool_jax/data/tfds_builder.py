"""The TFDS builder behind `publish`: one split per round, ArrayRecord files. Imports TFDS, so import it lazily."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from looptool_jax.data.files import dump_json
from looptool_jax.data.publish import split_name
from looptool_jax.toolcall.records import Sample


class SampleSetBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """Writes rounds of samples. Each example is its id, round and kind, and the whole sample as JSON text."""

    code_path = None  # nothing is downloaded, so there are no checksums to look for beside this file

    def __init__(
        self,
        name: str,
        version: str,
        data_dir: str | os.PathLike[str],
        rounds: Mapping[int, Callable[[], Iterable[Sample]]],
    ) -> None:
        self.name = name
        self.VERSION = tfds.core.Version(version)
        self._rounds = rounds
        super().__init__(data_dir=data_dir, version=version, file_format="array_record")

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "id": tfds.features.Text(),
            "round": tfds.features.Scalar(np.int32),
            "kind": tfds.features.Text(),
            "sample": tfds.features.Text(),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description="Tool-call samples, one split per round of the loop.",
            features=tfds.features.FeaturesDict(features),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
        return {split_name(number): self._generate_examples(number) for number in self._rounds}

    def _generate_examples(self, number: int) -> Iterator[tuple[int, dict[str, Any]]]:
        for index, sample in enumerate(self._rounds[number]()):
            text = dump_json(sample.to_json()).decode("utf-8")
            yield index, {"id": sample.id, "round": number, "kind": sample.origin.kind, "sample": text}
