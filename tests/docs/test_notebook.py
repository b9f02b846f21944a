"""The Colab notebook: in step with its source, and executed on this machine's CPU (a minute: `-m slow`)."""

import json
import os
import re
import shlex
import sys
from pathlib import Path

import pytest

from looptool_jax.config import load_config

ROOT = Path(__file__).parents[2]


def cells(book, kind: str) -> list:
    return [cell for cell in book.cells if cell.cell_type == kind]


def test_the_notebook_is_what_its_source_makes():
    jupytext = pytest.importorskip("jupytext")
    source = jupytext.read(ROOT / "launch/colab.py")
    committed = json.loads((ROOT / "launch/colab.ipynb").read_text())
    assert [(cell["cell_type"], "".join(cell["source"])) for cell in committed["cells"]] == [
        (cell.cell_type, cell.source.strip("\n")) for cell in source.cells
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


def test_the_kernel_leaves_the_accelerator_to_the_program():
    source = (ROOT / "launch/colab.py").read_text()
    assert not re.search(r"^ *(import|from) (jax|looptool_jax)", source, re.MULTILINE)


def test_the_command_for_the_tpu_is_one_that_the_program_takes():
    """It is executed on a TPU alone."""
    source = (ROOT / "launch/colab.py").read_text()
    settings = [re.search(rf'^{name} = "(.*)"$', source, re.MULTILINE)[1] for name in ("LORA", "SIZE")]
    cfg = load_config("colab_v5e1", shlex.split(" ".join(settings)))
    assert cfg.train.lora is not None and cfg.policy.path == cfg.judge_model.path == "Qwen/Qwen3-0.6B"
    assert cfg.data.round_size >= cfg.train.batch and cfg.rounds == 1 and cfg.finish_loop
    assert "looptool run --config colab_v5e1 run_dir={QWEN_RUN} {LORA} {SIZE}" in source


def install_cell(monkeypatch, folder: Path) -> tuple[str, dict]:
    """The cell that installs, and what the cell before it defines; in a folder, with nothing on the path."""
    jupytext = pytest.importorskip("jupytext")
    pytest.importorskip("matplotlib")
    before, source = (
        next(cell.source for cell in jupytext.read(ROOT / "launch/colab.py").cells if name in cell.source)
        for name in ("REPOSITORY =", "def sh(")
    )
    scope: dict = {}
    exec(compile(before, "colab.py", "exec"), scope)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PATH", "")
    return source, scope


def test_a_failed_command_stops_the_notebook(tmp_path, monkeypatch):
    source, scope = install_cell(monkeypatch, tmp_path)
    exec(compile(source.partition("\nenvironment =")[0], "colab.py", "exec"), scope)
    with pytest.raises(RuntimeError, match="ended with status 3"):
        scope["sh"](f"{sys.executable} -c 'raise SystemExit(3)'")


def test_the_placeholder_of_the_repository_is_told(tmp_path, monkeypatch):
    """Where the program is not installed, the install cell asks for the repository's address and fetches nothing."""
    source, scope = install_cell(monkeypatch, tmp_path)
    with pytest.raises(RuntimeError, match="placeholder"):
        exec(compile(source, "colab.py", "exec"), scope)
    assert not os.listdir(tmp_path)


def test_the_environment_is_made_once(tmp_path, monkeypatch):
    """With an address: uv makes the environment; behind a restart of the kernel it is found again."""
    source, scope = install_cell(monkeypatch, tmp_path)
    scope["REPOSITORY"] = "https://example.org/me/looptool-jax"
    commands: list[str] = []

    def sh(command):
        commands.append(command)
        if command.startswith("uv pip"):
            (tmp_path / "looptool-venv/bin").mkdir(parents=True)
            (tmp_path / "looptool-venv/bin/looptool").write_text("")

    body = "environment =" + source.partition("\nenvironment =")[2]
    for _ in range(2):
        exec(compile(body, "colab.py", "exec"), {**scope, "sh": sh})
    assert [command.split()[0] for command in commands] == ["pip", "uv", "uv", "looptool", "looptool"]
    assert f"'looptool-jax[tpu] @ git+{scope['REPOSITORY']}'" in commands[2]
