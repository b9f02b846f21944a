"""Seeds from TFDS and Hugging Face data sets: the same samples as from the files they were made of."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from looptool_jax.data.importers import import_file, read_data_set
from looptool_jax.data.publish import publish
from looptool_jax.data.store import DataError
from looptool_jax.loop.synthesize import DataConfig, _load
from looptool_jax.world import generate

TOOL = {"name": "find", "description": "Finds.", "parameters": {"q": {"type": "str"}, "n": {"type": "int, optional"}}}
ROWS = [
    {
        "query": f"Find größe {i}",
        "tools": json.dumps([TOOL]),
        "answers": json.dumps([{"name": "find", "arguments": {"q": str(i), "n": i}}]),
    }
    for i in range(5)
]
MESSAGES = [
    {
        "messages": [
            {"role": "user", "content": f"Find {i}"},
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [{"name": "find", "arguments": json.dumps({"q": str(i)})}],
            },
        ],
        "tools": json.dumps([TOOL]),
    }
    for i in range(3)
]


def contents(samples) -> list:
    return [(sample.tools, sample.messages, sample.target) for sample in samples]


def plain(folder: Path, rows: list, format: str) -> list:
    path = folder / "plain.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return contents(import_file(path, format).samples)


@pytest.fixture
def hf(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    return datasets


def test_hugging_face_folders_without_a_network(tmp_path, hf):
    whole = hf.Dataset.from_list(ROWS)
    whole.save_to_disk(tmp_path / "saved")
    hf.DatasetDict({"train": whole, "test": whole.select([4])}).save_to_disk(tmp_path / "splits")
    (tmp_path / "files").mkdir()
    whole.to_parquet(tmp_path / "files" / "train-00000-of-00001.parquet")
    expected = plain(tmp_path, ROWS, "xlam")
    (arrow,) = (tmp_path / "saved").glob("*.arrow")
    for source in ("hf:saved", "hf:splits", "hf:splits#train", "hf:files", arrow):
        place = f"hf:{tmp_path}/{source[3:]}" if isinstance(source, str) else source
        result = import_file(place, "xlam")
        assert contents(result.samples) == expected and not result.rejected
    (last,) = import_file(f"hf:{tmp_path}/splits#test", "xlam").samples
    assert contents([last]) == expected[4:]


def test_hugging_face_errors_are_one_line(tmp_path, hf):
    hf.DatasetDict({"a": hf.Dataset.from_list(ROWS), "b": hf.Dataset.from_list(ROWS)}).save_to_disk(tmp_path / "splits")
    hf.Dataset.from_list(ROWS).save_to_disk(tmp_path / "saved")
    (tmp_path / "empty").mkdir()
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged/dataset_dict.json").write_text("[]")
    for source, reason in (
        (f"hf:{tmp_path}/splits", "there is no split train; name one of a, b behind a #"),
        (f"hf:{tmp_path}/splits#c", "there is no split c"),
        (f"hf:{tmp_path}/saved#train", "it has no splits; leave #train away"),
        (f"hf:{tmp_path}/empty", "no readable data set"),
        (f"hf:{tmp_path}/damaged", "no readable data set"),
        ("hf:nobody/nothing-here", "no readable data set"),
        ("hf:", "names no data set; give it as hf:NAME"),
        ("hf:gorilla-llm/Berkeley-Function-Calling-Leaderboard", "this is the BFCL benchmark"),
    ):
        with pytest.raises(DataError, match=reason) as raised:
            import_file(source, "xlam")
        assert "\n" not in str(raised.value) and source in str(raised.value)


def test_without_the_library_it_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"needs datasets; install looptool-jax\[hf\]"):
        import_file("hf:a/b", "xlam")


def build_tfds(folder: Path, name: str, rows: list, file_format: str, features) -> None:
    import tensorflow_datasets as tfds

    class Made(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("2.1.0")
        code_path = None

        def _info(self):
            return tfds.core.DatasetInfo(builder=self, features=features(tfds), disable_shuffling=True)

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples(rows), "test": self._generate_examples(rows[:1])}

        def _generate_examples(self, some):
            yield from enumerate(some)

    Made.name = name
    tfds.disable_progress_bar()
    Made(data_dir=folder, file_format=file_format).download_and_prepare(download_dir=folder / "none")


def test_tfds_data_sets_by_name_and_by_folder(tmp_path, monkeypatch):
    def texts(tfds):
        return tfds.features.FeaturesDict({key: tfds.features.Text() for key in ROWS[0]})

    def turns(tfds):
        text = tfds.features.Text()
        call = {"name": text, "arguments": text}
        message = {"role": text, "content": text, "tool_calls": tfds.features.Sequence(call)}
        return tfds.features.FeaturesDict({"messages": tfds.features.Sequence(message), "tools": text})

    build_tfds(tmp_path, "my_calls", ROWS, "array_record", texts)
    padded = [{**row, "messages": [{"tool_calls": [], **message} for message in row["messages"]]} for row in MESSAGES]
    build_tfds(tmp_path, "my_chats", padded, "array_record", turns)
    expected = plain(tmp_path, ROWS, "xlam")
    for source in (f"tfds:{tmp_path}/my_calls/2.1.0", f"tfds:{tmp_path}/my_calls", f"tfds:{tmp_path}/my_calls#train"):
        assert contents(import_file(source, "xlam").samples) == expected
    assert contents(import_file(f"tfds:{tmp_path}/my_calls#test", "xlam").samples) == expected[:1]
    shutil.copytree(tmp_path / "my_calls/2.1.0", tmp_path / "my_calls/10.0.0")
    shutil.copytree(tmp_path / "my_chats/2.1.0", tmp_path / "my_calls/2.1.0", dirs_exist_ok=True)
    for source in (f"tfds:{tmp_path}/my_calls", f"tfds:{tmp_path}/my_calls:10.0.0#train"):
        assert contents(import_file(source, "xlam").samples) == expected, "10.0.0 is behind 2.1.0"
    result = import_file(f"tfds:{tmp_path}/my_chats", "openai")
    assert contents(result.samples) == plain(tmp_path, MESSAGES, "openai") and not result.rejected
    for source, reason in (
        (f"tfds:{tmp_path}/my_calls#dev", "there is no split dev; name one of"),
        (f"tfds:{tmp_path}/absent", "no such TFDS data set"),
        ("tfds:", "names no data set"),
    ):
        with pytest.raises(DataError, match=reason) as raised:
            import_file(source, "xlam")
        assert "\n" not in str(raised.value)


def test_published_rounds_are_seeds_again_without_tensorflow(tmp_path):
    samples = generate("train", 6, seed=2)
    publish({1: samples, 2: samples[:2]}, tmp_path, "mine")
    code = """
        import sys
        from looptool_jax.data.importers import read_data_set
        for name in sys.argv[1:]:
            print(*(sample.id for sample in read_data_set(name)))
        assert "tensorflow" not in sys.modules
    """
    names = [f"tfds:{tmp_path}/mine/round_1", "tfds:mine/round_2", "tfds:mine/round_1:1.0.0#train"]
    env = {**os.environ, "TFDS_DATA_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(line[8:] for line in code.splitlines()), *names],
        capture_output=True, text=True, env=env,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    ids = [sample.id for sample in samples]
    assert done.stdout.splitlines() == [" ".join(ids), " ".join(ids[:2]), " ".join(ids)]
    source = f"tfds:{tmp_path}/mine/round_1"
    assert list(read_data_set(source)) == samples
    assert _load(DataConfig(source=source), str(tmp_path)) == (samples, {"read": 6, "rejected": 0})


def test_rows_that_are_no_samples_are_named(tmp_path, hf):
    hf.Dataset.from_list([{"sample": json.dumps(generate("train", 1, 0)[0].to_json())}, {"sample": "{}"}]).save_to_disk(
        tmp_path / "saved"
    )
    with pytest.raises(DataError, match=r"saved:2: no sample: "):
        list(read_data_set(f"hf:{tmp_path}/saved"))


@pytest.mark.slow
def test_a_data_set_with_tfrecord_files_alone(tmp_path):
    build_tfds(
        tmp_path, "old_calls", ROWS, "tfrecord",
        lambda tfds: tfds.features.FeaturesDict({key: tfds.features.Text() for key in ROWS[0]}),
    )  # fmt: skip
    assert contents(import_file(f"tfds:{tmp_path}/old_calls", "xlam").samples) == plain(tmp_path, ROWS, "xlam")
