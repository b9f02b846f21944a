"""The TFDS builder behind `publish`: a configuration per round. Imports TFDS, so import it lazily."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from looptool_jax.data.files import dump_json
from looptool_jax.toolcall.records import Sample


def sample_set_builder(
    data_set: str, version: str, split: str, rounds: Mapping[str, tuple[int, Callable[[], Iterable[Sample]]]]
) -> type[tfds.core.GeneratorBasedBuilder]:
    """The builder of a data set, as a class, for TFDS wants configurations to be attributes of one.

    rounds: number and samples of each round by the name of its configuration. Who names none gets the last. An example
    is a sample's id, round and kind, and the whole sample as JSON text.
    """

    class SampleSetBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
        name = data_set
        VERSION = tfds.core.Version(version)
        BUILDER_CONFIGS = [  # noqa: RUF012
            tfds.core.BuilderConfig(name=config, version=version, description=f"Data of round {number}.")
            for config, (number, _) in rounds.items()
        ]
        DEFAULT_BUILDER_CONFIG_NAME = max(rounds, key=lambda config: rounds[config][0])
        code_path = None  # nothing is downloaded, so there are no checksums to look for beside this file

        def _info(self) -> tfds.core.DatasetInfo:
            features = {
                "id": tfds.features.Text(),
                "round": tfds.features.Scalar(np.int32),
                "kind": tfds.features.Text(),
                "sample": tfds.features.Text(),
            }
            return tfds.core.DatasetInfo(
                builder=self,
                description="Tool-call samples, a configuration per round of the loop.",
                features=tfds.features.FeaturesDict(features),
                disable_shuffling=True,
            )

        def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
            return {split: self._generate_examples(*rounds[self.builder_config.name])}

        def _generate_examples(
            self, number: int, samples: Callable[[], Iterable[Sample]]
        ) -> Iterator[tuple[int, dict[str, Any]]]:
            for index, sample in enumerate(samples()):
                text = dump_json(sample.to_json()).decode("utf-8")
                yield index, {"id": sample.id, "round": number, "kind": sample.origin.kind, "sample": text}

    return SampleSetBuilder
