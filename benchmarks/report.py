"""How a report with many samples loads and answers in a browser.

    looptool run run_dir=/tmp/run
    python benchmarks/report.py /tmp/run --samples 20000 --conversations messages.jsonl --format openai

A run of so many samples is made of the given one: its rows repeated under new ids, their conversations and tools those
of the file, in turn, the tools of every repetition with words of their own (so that they are not kept once for all).
Needs playwright and a Chromium; `--chromium` names it.

    npm pack axe-core && tar xzf axe-core-*.tgz
    python benchmarks/report.py /tmp/run --axe package/axe.min.js     # what axe has to say of the run's own report
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

from looptool_jax.data.importers import import_file
from looptool_jax.evaluation import heldout  # noqa: F401  (JAX, which a run has loaded when it writes its report)
from looptool_jax.report import html
from looptool_jax.report.html import write_report

ARGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--enable-precise-memory-info",
]
QUERIES = ("flight", "weather", "the", "zebra", "email", "2024", "list", "city", "a b", "number")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--samples", type=int, default=20_000)
    parser.add_argument("--conversations", type=Path)
    parser.add_argument("--format", default="openai")
    parser.add_argument("--chromium", default=shutil.which("chromium"))
    parser.add_argument("--axe", type=Path)
    args = parser.parse_args()
    started = time.process_time()
    own = Path(write_report(str(args.run)))
    size = own.stat().st_size / 1e6
    print(f"report of {args.run} itself: {size:.1f} MB, {time.process_time() - started:.2f} s of one core")
    if args.axe:
        check(own, args.chromium, args.axe)
    if not args.conversations:
        return
    with tempfile.TemporaryDirectory() as folder:
        big = Path(folder) / "run"
        conversations = [sample.to_json() for sample in import_file(str(args.conversations), args.format).samples]
        multiply(args.run, big, args.samples, conversations)
        html.MOST_SAMPLES = args.samples
        started = time.monotonic()
        page = Path(write_report(str(big)))
        raw = sum(file.stat().st_size for file in big.rglob("*.jsonl"))
        print(
            f"{args.samples} samples, {raw / 1e6:.0f} MB of files: report of {page.stat().st_size / 1e6:.1f} MB "
            f"written in {time.monotonic() - started:.1f} s"
        )
        for name, milliseconds in browse(page, args.chromium).items():
            print(f"{name}: {milliseconds:,.0f}")


def multiply(run: Path, out: Path, samples: int, conversations: list[dict[str, Any]]) -> None:
    """Write a run in `out` whose rows are those of `run`, repeated until there are at least so many samples."""
    ids = {row["id"] for file in run.rglob("*.jsonl") for row in rows(file) if "id" in row}
    turn = cycle(conversations)
    talks: dict[str, dict[str, Any]] = {}

    def again(row: dict[str, Any], copy: int) -> dict[str, Any]:
        row = json.loads(json.dumps(row))
        for holder in (row, row.get("origin", {})):
            for key in ("id", "sample_id", "parent"):
                if holder.get(key) in ids:
                    holder[key] = f"{holder[key]}-{copy}"
        if isinstance(row.get("sample"), dict):
            row["sample"] = again(row["sample"], copy)
        if "messages" in row:
            talk = talks[row["id"]] if row["id"] in talks else talks.setdefault(row["id"], next(turn))
            row["messages"] = talk["messages"]
            row["tools"] = [tool | {"description": f"{tool['description']} ({copy})"} for tool in talk["tools"]]
        return row

    shutil.copytree(run, out, ignore=lambda _, names: [name for name in names if name.endswith(("jsonl", "tensors"))])
    copies = -(-samples // len(ids))
    for file in run.rglob("*.jsonl"):
        repeated = file.parent != run and file.name not in ("steps.jsonl", "parts.jsonl")
        with (out / file.relative_to(run)).open("w") as written:
            for copy in range(copies if repeated else 1):
                written.writelines(json.dumps(again(row, copy)) + "\n" for row in rows(file))


def rows(file: Path) -> list[dict[str, Any]]:
    with file.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def browse(page: Path, chromium: str) -> dict[str, float]:
    """Milliseconds (and megabytes) of what a reader waits for."""
    from playwright.sync_api import sync_playwright

    found: dict[str, float] = {}
    with sync_playwright() as session:
        browser = session.chromium.launch(executable_path=chromium, args=ARGS)
        tab = browser.new_context(viewport={"width": 1280, "height": 900}).new_page()

        def timed(act: Callable[[], Any], done: str) -> float:
            started = time.monotonic()
            act()
            while not tab.evaluate(done):
                tab.wait_for_timeout(5)
            return 1000 * (time.monotonic() - started)

        ready = "!document.getElementById('browser').hidden && document.querySelectorAll('#results li').length > 0"
        found["load, ms"] = timed(lambda: tab.goto(f"file://{page}"), ready)
        waiting = "document.getElementById('count').textContent.startsWith('Unpacking')"
        counted = "document.getElementById('count').textContent"
        before = json.dumps(tab.inner_text("#count"))
        first = timed(lambda: tab.fill("input[name=text]", "weather"), f"!{waiting} && {counted} !== {before}")
        found["first search (unpacks all samples), ms"] = first
        found["search, ms"] = statistics.median(_draws(tab, "text", QUERIES))
        found["filter, ms"] = statistics.median(_draws(tab, "outcome", ("right", "wrong", "learnt", "lost", "")))
        tab.evaluate("document.getElementById('filters').reset()")
        tab.wait_for_timeout(300)
        hash_ = tab.evaluate("document.querySelectorAll('#results a')[30].hash")
        opened = "!!document.getElementById('sample-title')"
        found["open a sample, ms"] = timed(lambda: tab.evaluate("hash => { location.hash = hash; }", hash_), opened)
        found["JavaScript heap, MB"] = tab.evaluate("performance.memory.usedJSHeapSize") / 1e6
        browser.close()
    return found


def check(page: Path, chromium: str, axe: Path) -> None:
    """Print axe's violations, all folded parts open and a sample shown, in light and dark, wide and narrow."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as session:
        browser = session.chromium.launch(executable_path=chromium, args=ARGS)
        for scheme, width in (("light", 1280), ("dark", 1280), ("light", 340), ("dark", 340)):
            context = browser.new_context(
                viewport={"width": width, "height": 900}, color_scheme=scheme, bypass_csp=True
            )  # fmt: skip
            tab = context.new_page()
            tab.goto(f"file://{page}#verdict=label_wrong")
            tab.wait_for_selector("#results li")
            tab.click("#results a >> nth=0")
            tab.wait_for_selector("#sample .pair")
            tab.evaluate("document.querySelectorAll('details').forEach(details => { details.open = true; })")
            tab.add_script_tag(path=axe)
            found = tab.evaluate("axe.run({resultTypes: ['violations']})")
            names = [f"{one['id']} ({len(one['nodes'])})" for one in found["violations"]]
            version = found["testEngine"]["version"]
            print(f"axe {version}, {scheme}, {width} px: {', '.join(names) or 'no violations'}")
        browser.close()


DRAWS = """async ([name, value]) => {
    const form = document.getElementById('filters'), list = document.getElementById('results');
    const painted = (done) => requestAnimationFrame(() => setTimeout(done));
    const drawn = new Promise((done) => new MutationObserver(() => painted(done)).observe(list, {childList: true}));
    form.elements[name].value = value;
    const started = performance.now();
    form.dispatchEvent(new Event('input', {bubbles: true}));
    await drawn;
    return performance.now() - started - 60;
}"""


def _draws(tab: Any, name: str, values: Sequence[str]) -> list[float]:
    """From an input to the next picture with its result, in the browser's own clock, without the 60 ms for which the
    list waits for further letters."""
    return [tab.evaluate(DRAWS, [name, value]) for value in values]


if __name__ == "__main__":
    main()
