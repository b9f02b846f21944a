"""The Colab notebook: in step with its source, and executed on this machine's CPU (a minute: `-m slow`)."""

import json
import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def cells(book, kind: str) -> list:
    return [cell for cell in book.cells if cell.cell_type == kind]


def test_the_notebook_is_what_its_source_makes():
    jupytext = pytest.importorskip("jupytext")
    source = jupytext.read(ROOT / "launch/colab.py")
    committed = json.loads((ROOT / "launch/colab.ipynb").read_text())
    assert [(cell["cell_type"], "".join(cell["source"])) for cell in committed["cells"]] == [
        (cell.cell_type, cell.source) for cell in source.cells
    ], "run python docs/generate.py"
    assert all(not cell.get("outputs") for cell in committed["cells"])
    assert committed["metadata"]["accelerator"] == "TPU"


@pytest.mark.slow
def test_cells_are_short_and_each_comes_with_a_reason(executed):
    before = None
    for cell in executed.book.cells:
        assert cell.source.count("\n") < 25
        if cell.cell_type == "code" and before is not None and before.cell_type == "code":
            assert "QWEN" in cell.source or "REPOSITORY" in before.source
        before = cell


@pytest.mark.slow
def test_it_runs_to_its_end_on_a_machine_without_a_tpu(executed):
    run = executed.folder / "runs/micro"
    manifest = json.loads((run / "manifest.json").read_text())
    assert "round-2/score" in manifest["stages"]
    assert (run / "report.html").is_file() and (executed.folder / "policy/model.safetensors").is_file()
    text = "".join(
        output.get("text", "") for cell in cells(executed.book, "code") for output in cell.outputs if "text" in output
    )
    assert "JAX computes on: cpu; configuration: micro" in text
    assert "Left out: there is no TPU here" in text
    assert "Held-out accuracy" in text and "verdict:" in text


@pytest.mark.slow
def test_its_plots_are_shown_where_they_are_drawn(executed):
    images = [
        output for cell in cells(executed.book, "code") for output in cell.outputs
        if output.output_type == "display_data" and "image/png" in output.data
    ]  # fmt: skip
    assert len(images) == 3
    assert len({image.data["image/png"] for image in images}) == 3


def test_the_kernel_leaves_the_accelerator_to_the_program(executed):
    sources = [cell.source for cell in cells(executed.book, "code")]
    assert not any(line.startswith(("import jax", "from jax")) for source in sources for line in source.splitlines())


def test_a_failed_command_stops_the_notebook(tmp_path, monkeypatch):
    """The cell that defines `sh`, without the rest."""
    jupytext = pytest.importorskip("jupytext")
    book = jupytext.read(ROOT / "launch/colab.py")
    source = next(cell.source for cell in book.cells if "def sh(" in cell.source).split("\nif shutil.which")[0]
    scope: dict = {"subprocess": __import__("subprocess")}
    exec(compile(source, "colab.py", "exec"), scope)  # the project's own file
    with pytest.raises(RuntimeError, match="ended with status 3"):
        scope["sh"](f"{sys.executable} -c 'raise SystemExit(3)'")


def test_the_placeholder_of_the_repository_is_told(tmp_path, monkeypatch):
    """Where the program is not installed, the install cell asks for the repository's address and fetches nothing."""
    jupytext = pytest.importorskip("jupytext")
    book = jupytext.read(ROOT / "launch/colab.py")
    scope: dict = {}
    for name in ("REPOSITORY =", "def sh("):
        source = next(cell.source for cell in book.cells if name in cell.source)
        monkeypatch.setenv("PATH", str(tmp_path))
        if name == "def sh(":
            with pytest.raises(RuntimeError, match="placeholder"):
                exec(compile(source, "colab.py", "exec"), scope)
        else:
            exec(compile(source.replace("import matplotlib.pyplot as plt", ""), "colab.py", "exec"), scope)
    assert not os.listdir(tmp_path)
