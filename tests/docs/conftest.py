"""The Colab notebook, executed once: its outputs are looked at, and documented commands use the run it leaves."""

import os
import sysconfig
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]


class Executed(NamedTuple):
    book: object  # a notebook with outputs
    folder: Path  # where it was executed; its run is runs/micro


@pytest.fixture(scope="session")
def executed(tmp_path_factory) -> Executed:
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    pytest.importorskip("matplotlib")
    folder = tmp_path_factory.mktemp("colab")
    book = nbformat.read(ROOT / "launch/colab.ipynb", as_version=4)
    client = nbclient.NotebookClient(
        book, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    )
    scripts = sysconfig.get_path("scripts")
    settings = {
        "PATH": f"{scripts}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "XLA_FLAGS": "--xla_backend_optimization_level=0",  # one device, as most machines have
    }
    client.execute(env={**os.environ, **settings})
    return Executed(book, folder)
