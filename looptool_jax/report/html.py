"""The HTML report of a run: one self-contained file that says what happened, with every figure and every sample."""

from __future__ import annotations

from typing import Any

from looptool_jax.data.store import DataError, exists, join, read_text, write_text
from looptool_jax.loop.environment import NAME as ENVIRONMENT
from looptool_jax.loop.environment import environments
from looptool_jax.loop.manifest import Manifest
from looptool_jax.report import sections
from looptool_jax.report.cards import browser, expansion_cards, repair_cards
from looptool_jax.report.page import Section, page, resource, table, text
from looptool_jax.report.payload import samples_markup
from looptool_jax.report.stories import read_stories
from looptool_jax.report.tables import Table, rounds_of, run_tables, which_run

NAME = "report.html"
MOST_SAMPLES = 20_000  # that a page holds
MOST_BYTES = 128 << 20  # of their JSON, which is a fifth as large in the page or less


def write_report(run_dir: str) -> str:
    """Write `run_dir/report.html` from what the run has by now; returns its path.

    Raises DataError, also where `run_dir` holds no run.
    """
    stages = {name: entry["metrics"] for name, entry in Manifest(run_dir).stages.items()}
    if not stages:
        raise DataError(f"{run_dir}: no finished stage of a run here; {which_run(run_dir)}")
    stories = read_stories(run_dir, stages, MOST_SAMPLES, MOST_BYTES)
    tables = {content.title: content for content in run_tables(run_dir)}
    parts = [
        Section("overview", "Overview", sections.headline(run_dir, stages)),
        Section("accuracy", "Accuracy", sections.accuracy(stages) + _take(tables, "Held-out accuracy")),
        Section("data", "Data", sections.data(stages) + _take(tables, "Data composition")),
        Section(
            "training", "Training", sections.training(run_dir, stages) + _take(tables, "Training", "Training by part")
        ),
        Section("labels", "Labels", _take(tables, "Judging (JGLV)", "Label repair") + repair_cards(stories)),
        Section("expansion", "Expansion", _take(tables, "Expansion (EDDE)") + expansion_cards(stories)),
        Section("samples", "Samples", browser(stories)),
        Section("contamination", "Contamination", _take(tables, "Samples beside benchmarks")),
        Section("compute", "Compute", sections.compute(run_dir) + _take(tables, "Cost")),
        Section("more", "More", _take(tables, *tables)),
        Section("configuration", "Configuration", _configuration(run_dir)),
    ]
    trained = [round_ for round_, _ in rounds_of(stages, "train")]
    content = page(
        "LoopTool run",
        run_dir,
        [part for part in parts if part.html],
        resource("report.js"),
        samples_markup(stories, trained),
    )
    path = join(run_dir, NAME)
    write_text(path, content)
    return path


def _take(tables: dict[str, Table], *titles: str) -> str:
    """These tables as markup; what is taken is not shown again."""
    return "".join(table(tables.pop(title)) for title in list(titles) if title in tables)


def _configuration(run_dir: str) -> str:
    """What the run ran with, and its settings."""
    parts = [table(_environment(row)) for row in environments(join(run_dir, ENVIRONMENT))]
    path = join(run_dir, "config.yaml")
    if exists(path):
        parts.append(
            f"<h3>Settings</h3><details><summary>config.yaml</summary><pre>{text(read_text(path))}</pre></details>"
        )
    return "".join(parts)


def _environment(row: dict[str, Any]) -> Table:
    devices = row["devices"]
    where = f"{devices['count']} × {devices['kind']}, {devices['hosts']} process{'es' * (devices['hosts'] > 1)}"
    rows = [["devices", where], ["system", row["system"]], ["python", row["python"]]]
    for role, parameters in row["models"].items():
        rows.append([f"parameters of the {role}", "behind a server" if parameters is None else f"{parameters:,}"])
    rows += [[name, version] for name, version in row["packages"].items()]
    return Table("Versions and devices", ["what", "which"], rows, "parameters: those that a token goes through")
