"""The pictures of the report in docs/images: of a quickstart run, in light and dark, of one sample, and on a phone.

    looptool run run_dir=runs/quickstart
    python benchmarks/screenshots.py runs/quickstart docs/images

Needs playwright, pillow and a Chromium; `--chromium` names it.
"""

from __future__ import annotations

import argparse
import io
import shutil
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import sync_playwright

from looptool_jax.data.store import read_jsonl
from looptool_jax.report.html import write_report

ARGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
DESK, PHONE = {"width": 1200, "height": 1000}, {"width": 390, "height": 844}
COLOURS = 96


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--chromium", default=shutil.which("chromium"))
    args = parser.parse_args()
    page = Path(write_report(str(args.run))).resolve()
    grown = [row["origin"]["parent"] for row in read_jsonl(str(args.run / "round-1/expand/expanded.jsonl"))]
    errors = {row["sample"]["id"]: row["sample"] for row in read_jsonl(str(args.run / "round-1/judge/errors.jsonl"))}
    repaired = next(id_ for id_ in grown if errors[id_]["origin"]["verdict"] == "label_wrong")
    sample = f"#verdict=label_wrong&sample={repaired}"
    with sync_playwright() as session:
        browser = session.chromium.launch(executable_path=args.chromium, args=ARGS)
        for name, fragment, scheme, viewport, scale in (
            ("report-light", "", "light", DESK, 1),
            ("report-dark", "#training", "dark", DESK, 1),
            ("report-sample", sample, "light", {"width": 1200, "height": 1560}, 1),
            ("report-phone", "#labels", "light", PHONE, 2),
        ):
            context = browser.new_context(viewport=viewport, color_scheme=scheme, device_scale_factor=scale)
            tab = context.new_page()
            tab.goto(f"file://{page}{fragment}")
            tab.wait_for_selector("#sample-title" if "sample=" in fragment else "#results li", state="attached")
            if fragment == "#labels":
                tab.click("#labels details summary")
                tab.evaluate("document.querySelector('#labels details').scrollIntoView()")
            save(tab, args.out / f"{name}.png")
            context.close()
        browser.close()


def save(tab: Any, path: Path) -> None:
    """The picture of a tab, in few colours."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.open(io.BytesIO(tab.screenshot())).convert("RGB").quantize(COLOURS).save(path, optimize=True)
    print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
