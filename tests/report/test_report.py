"""The report of a run: what models and users wrote is text in it, never markup."""

from __future__ import annotations

import io
from html.parser import HTMLParser

import pytest
import rich.console

from looptool_jax.data.store import DataError, read_text, write_jsonl, write_text
from looptool_jax.loop.ledger import Ledger
from looptool_jax.loop.manifest import Manifest
from looptool_jax.report.html import write_report
from looptool_jax.report.tables import run_tables

ATTACK = "<script>alert('1')</script>\"'&</pre><img src=x onerror=alert(2)> [bold]\u2028[/nothing]"
TAGS = {
    "html", "meta", "title", "style", "body", "h1", "h2", "p", "div", "table", "tr", "th", "td", "details", "summary",
    "b", "pre", "figure", "figcaption", "svg", "line", "text", "polyline",
}  # fmt: skip


class Page(HTMLParser):
    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data):
        self.text += data


@pytest.fixture
def run_dir(tmp_path):
    """One round of a run in which everything that can be text is hostile."""
    here = tmp_path / "round-1"
    write_jsonl(here / "train/steps.jsonl", [{"reward": 0.5, "zero_variance": 0.25}, {"reward": 1, "zero_variance": 0}])
    write_jsonl(here / "data.jsonl", [{"id": ATTACK, "target": {"text": ATTACK, "intent": "answer"}}])
    judged = {"id": ATTACK, "verdict": "label_wrong", "decided_by": "judge", "answer": ATTACK, "analysis": ATTACK}
    write_jsonl(here / "judge/judgements.jsonl", [judged, judged | {"id": "not-judged", "decided_by": "rules"}])
    messages = [
        {"role": "system", "content": "hidden"},
        {"role": "user", "content": ATTACK},
        {"role": "assistant", "content": "", "calls": [{"name": "look_up", "arguments": {"x": ATTACK}}]},
    ]
    origin = {"kind": "expanded", "scenario": ATTACK}
    expanded = {"id": ATTACK, "messages": messages, "target": {"calls": []}, "origin": origin}
    write_jsonl(here / "expand/expanded.jsonl", [expanded])
    write_text(tmp_path / "config.yaml", f"run_dir: {ATTACK}\n")
    manifest = Manifest(str(tmp_path))
    for name, right in (("eval-0", 0.25), ("round-1/eval", 0.75)):
        by_category = {ATTACK: {"items": 4, "accuracy": right}}
        manifest.commit(name, (), (), {"accuracy": right, "items": 4, "interval95": 0.1, "by_category": by_category})
    counts = dict.fromkeys(("seeds", "generated", "accepted", "acceptance"), 1)
    rejected = dict.fromkeys((f"rejected_{tier}" for tier in ("parse", "rules", "judge", "duplicate")), 0)
    training = {
        "steps": 2,
        "reward_first": 0.5,
        "reward_last": 1,
        "zero_variance": 0,
        "truncated": 0,
        "answer_tokens": 9,
    }
    manifest.commit("round-1/train", (), (), training)
    manifest.commit("round-1/expand", (), (), counts | rejected)
    Ledger(str(tmp_path / "ledger.jsonl")).record("round-1/train", 2.0, 9)
    return str(tmp_path)


def test_hostile_text_stays_text(run_dir):
    html = read_text(write_report(run_dir))
    page = Page(html)
    assert page.tags <= TAGS, page.tags - TAGS
    assert not {name for name in page.attributes if name.startswith("on") or name in ("src", "href")}
    assert page.text.count("alert(2)") >= 8
    assert "http" not in html, "the report is one self-contained file"


def test_what_the_report_shows(run_dir):
    text = Page(read_text(write_report(run_dir))).text
    assert "from 25.0 % to 75.0 % (+50.0 points) over 1 round(s) on 4 items" in text
    assert 'assistant: {"name": "look_up"' in text and "hidden" not in text and "not-judged" not in text
    for title in ("Held-out accuracy", "Training", "Expansion (EDDE)", "Cost", "Configuration"):
        assert title in text


def test_the_terminal_shows_names_with_brackets_as_they_are(run_dir):
    out = io.StringIO()
    console = rich.console.Console(file=out, width=300)
    for table in run_tables(run_dir):
        console.print(table.rich())
    assert "[bold]" in out.getvalue() and "[/nothing]" in out.getvalue()


def test_a_directory_without_a_run_gets_no_report(tmp_path):
    with pytest.raises(DataError, match="no finished stage of a run here"):
        write_report(str(tmp_path / "nowhere"))
    assert not (tmp_path / "nowhere").exists()
