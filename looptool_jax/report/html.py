"""The HTML report of a run: one self-contained file with its tables, curves, and samples to read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from typing import Any

from looptool_jax.data.store import DataError, exists, join, read_jsonl, read_text, write_text
from looptool_jax.loop.manifest import Manifest
from looptool_jax.report.tables import Table, accuracies, rounds_of, run_tables

NAME = "report.html"
EXAMPLES = 6


def write_report(run_dir: str) -> str:
    """Write `run_dir/report.html` from what the run has by now; returns its path.

    Raises DataError, also where `run_dir` holds no run.
    """
    stages = {name: entry["metrics"] for name, entry in Manifest(run_dir).stages.items()}
    if not stages:
        raise DataError(f"{run_dir}: no finished stage of a run here; give the directory of a run")
    parts = [f"<h1>LoopTool run</h1><p class=note>{escape(run_dir)}</p>"]
    results = accuracies(stages)
    if results:
        before, after = results[0][1], results[-1][1]
        gain = 100 * (after["accuracy"] - before["accuracy"])
        parts.append(
            f"<p>Held-out accuracy went from {100 * before['accuracy']:.1f} % to {100 * after['accuracy']:.1f} % "
            f"({gain:+.1f} points) over {len(results) - 1} round(s) on {before['items']} items.</p>"
        )
    steps = _steps(run_dir, stages)
    if steps:
        parts.append("<h2>Reward and groups without signal, step by step</h2>")
        parts.append(_curve(steps))
    parts += [_table(table) for table in run_tables(run_dir)]
    parts += [_examples(run_dir, round_) for round_, _ in rounds_of(stages, "expand")]
    if exists(join(run_dir, "config.yaml")):
        config = escape(read_text(join(run_dir, "config.yaml")))
        parts.append(f"<h2>Configuration</h2><details><summary>config.yaml</summary><pre>{config}</pre></details>")
    body = "\n".join(parts)
    style = (files(__name__.rpartition(".")[0]) / "style.css").read_text(encoding="utf-8")
    page = (
        f"<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>LoopTool run</title><style>{style}</style><body>{body}</body></html>\n"
    )
    path = join(run_dir, NAME)
    write_text(path, page)
    return path


def _table(table: Table) -> str:
    head = "".join(f"<th>{escape(column)}</th>" for column in table.columns)
    rows = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in table.rows)
    note = f"<p class=note>{escape(table.note)}</p>" if table.note else ""
    return f"<h2>{escape(table.title)}</h2><div class=scroll><table><tr>{head}</tr>{rows}</table></div>{note}"


def _steps(run_dir: str, stages: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {"round": round_, **row}
        for round_, _ in rounds_of(stages, "train")
        for row in read_jsonl(join(run_dir, f"round-{round_}/train/steps.jsonl"))
    ]


def _curve(steps: Sequence[dict[str, Any]]) -> str:
    """Reward (line) and share of groups without signal (dashed) over the steps, rounds marked."""
    width, height, left, bottom = 960, 260, 44, 28
    span = max(1, len(steps) - 1)

    def x(index: int) -> float:
        return left + index / span * (width - left - 12)

    def y(value: float) -> float:
        return 10 + (1 - value) * (height - bottom - 10)

    def line(key: str) -> str:
        return " ".join(f"{x(i):.1f},{y(row[key]):.1f}" for i, row in enumerate(steps))

    grid = "".join(
        f"<line x1={left} x2={width} y1={y(v):.1f} y2={y(v):.1f} stroke=#d9dee6 />"
        f"<text x={left - 8} y={y(v) + 4:.1f} text-anchor=end font-size=12 fill=#5b6675>{v:g}</text>"
        for v in (0, 0.25, 0.5, 0.75, 1)
    )
    marks = "".join(
        f"<line x1={x(i):.1f} x2={x(i):.1f} y1=10 y2={height - bottom} stroke=#9aa4b2 stroke-dasharray='2 3' />"
        f"<text x={x(i) + 5:.1f} y={height - 8} font-size=12 fill=#5b6675>round {row['round']}</text>"
        for i, row in enumerate(steps)
        if i == 0 or steps[i - 1]["round"] != row["round"]
    )
    return (
        f"<figure><svg viewBox='0 0 {width} {height}' role=img aria-label='reward over steps'>{grid}{marks}"
        "<polyline fill=none stroke=#c4552d stroke-width=1.5 stroke-dasharray='5 4' "
        f"points='{line('zero_variance')}' />"
        f"<polyline fill=none stroke=#2f6fde stroke-width=2 points='{line('reward')}' /></svg>"
        "<figcaption>blue: mean reward of the rollouts; dashed: share of groups whose answers all got the same reward"
        "</figcaption></figure>"
    )


def _examples(run_dir: str, round_: int) -> str:
    """Some judged mismatches and some expanded samples, as text to read."""
    here = join(run_dir, f"round-{round_}")
    labels = {row["id"]: row["target"] for row in read_jsonl(join(here, "data.jsonl"))}
    parts = [f"<h2>Round {round_}: samples to read</h2>"]
    judged = [row for row in read_jsonl(join(here, "judge/judgements.jsonl")) if row["decided_by"] == "judge"]
    for row in judged[:EXAMPLES]:
        label = json.dumps(labels.get(row["id"], {}), ensure_ascii=False)
        parts.append(
            f"<details><summary>judged {escape(row['id'])}: <b>{escape(row['verdict'].replace('_', ' '))}</b>"
            f"</summary><pre>label   {escape(label)}\nanswer  {escape(row['answer'])}\n\n{escape(row['analysis'])}"
            "</pre></details>"
        )
    for row in list(read_jsonl(join(here, "expand/expanded.jsonl")))[:EXAMPLES]:
        dialogue = "\n".join(_turn(message) for message in row["messages"] if message["role"] != "system")
        target = json.dumps(row["target"], ensure_ascii=False)
        parts.append(
            f"<details><summary>expanded {escape(row['id'])}: {escape(row['origin'].get('scenario') or '')}</summary>"
            f"<pre>{escape(dialogue)}\n\nlabel  {escape(target)}</pre></details>"
        )
    return "".join(parts)


def _turn(message: dict[str, Any]) -> str:
    calls = [json.dumps(call, ensure_ascii=False) for call in message.get("calls", ())]
    return f"{message['role']}: {' '.join(filter(None, [message['content'], *calls]))}"
