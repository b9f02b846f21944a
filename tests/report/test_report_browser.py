"""The report in a browser: by pointer, by keyboard, in the dark, on a phone, on paper, without scripts, and offline."""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from itertools import chain, pairwise
from pathlib import Path
from urllib.parse import quote, unquote

import pytest

from .conftest import rows_of

PHONE = {"viewport": {"width": 320, "height": 700}, "has_touch": True}
DESK = {"viewport": {"width": 1280, "height": 900}}


def expect(page, condition: str) -> None:
    """Waits until it holds in the page. Playwright's own waiting would need the page to allow `eval`."""
    end = time.monotonic() + 5
    while not page.evaluate(condition):
        assert time.monotonic() < end, f"not within 5 s: {condition}"
        page.wait_for_timeout(20)


def count(page) -> int:
    return int(page.inner_text("#count").split()[0].replace(",", ""))


def shown(page) -> list[str]:
    """The ids of the samples of the list's page."""
    found = page.eval_on_selector_all("#results a", "links => links.map(a => a.hash)")
    return [re.search("sample=([^&]*)", hash_)[1] for hash_ in found]


def data(run: str, j: int) -> dict[str, dict]:
    return {row["id"]: row for row in rows_of(f"{run}/round-{j}/data.jsonl")}


def test_filters_find_what_the_files_say(run_dir, watched):
    page = watched(run_dir, **DESK).open()
    judged = [row for j in (1, 2) for row in rows_of(f"{run_dir}/round-{j}/judge/judgements.jsonl")]
    everything = count(page)
    page.select_option("#verdict", "label_wrong")
    wanted = {row["id"] for row in judged if row["verdict"] == "label_wrong"}
    expect(page, f"document.querySelectorAll('#results li').length === {len(wanted)}")
    assert set(shown(page)) == wanted and count(page) == len(wanted) < everything
    page.select_option("#verdict", "")
    page.select_option("#round", "2")
    page.select_option("#kind", "error")
    wanted = {id_ for id_, row in data(run_dir, 2).items() if row["origin"]["kind"] == "error"}
    expect(page, f"document.querySelectorAll('#results li').length === {len(wanted)}")
    assert set(shown(page)) == wanted
    page.click("button[type=reset]")
    expect(page, f"document.getElementById('count').textContent.startsWith('{everything} ')")
    category = next(iter(data(run_dir, 1).values()))["category"]
    page.select_option("#category", category)
    page.select_option("#outcome", "learnt")
    results = [rows_of(f"{run_dir}/{name}/results.jsonl") for name in ("eval-0", "round-1/eval", "round-2/eval")]
    probes = [rows_of(f"{run_dir}/round-{j}/probe/probes.jsonl") for j in (1, 2)]
    outcomes: dict[str, list[bool]] = {}
    for row in chain(*results, *probes):
        outcomes.setdefault(row["id"], []).append(row["correct"])
    categories = {
        row["id"]: row["category"] for row in (*results[0], *(r for j in (1, 2, 3) for r in data(run_dir, j).values()))
    }
    learnt = {id_ for id_, right in outcomes.items() if categories[id_] == category and right[-1] and not all(right)}
    expect(page, f"document.getElementById('count').textContent.startsWith('{len(learnt)} ')")
    assert set(shown(page)) == learnt


def test_search_reads_everything_that_was_said(run_dir, watched):
    page = watched(run_dir, **DESK).open()
    row = next(iter(data(run_dir, 1).values()))
    words = row["messages"][-1]["content"][10:40].upper()
    page.fill("input[name=text]", words)
    expect(page, "document.querySelectorAll('#results li').length < 5")
    assert row["id"] in shown(page)
    page.fill("input[name=text]", "One of the two says")
    judged = {row["id"] for j in (1, 2) for row in rows_of(f"{run_dir}/round-{j}/judge/judgements.jsonl")}
    expect(page, f"document.getElementById('count').textContent.startsWith('{len(judged)} ')")
    page.fill("input[name=text]", "no such words anywhere")
    expect(page, "document.getElementById('count').textContent.startsWith('0 ')")
    assert page.get_attribute("#count", "aria-live") == "polite"


def test_a_search_that_is_taken_back_while_samples_are_unpacked_is_not_drawn(run_dir, watched):
    look = watched(run_dir, **DESK)
    look.page.add_init_script("""
        const json = Response.prototype.json;
        Response.prototype.json = async function () {
            await new Promise((done) => setTimeout(done, 300));
            return json.call(this);
        };
    """)
    page = look.open()
    everything = count(page)
    page.fill("input[name=text]", "no such words anywhere")
    expect(page, "document.getElementById('count').textContent.startsWith('Unpacking')")
    page.fill("input[name=text]", "")
    expect(page, f"document.getElementById('count').textContent.startsWith('{everything} ')")
    page.wait_for_timeout(300 * (1 + everything // 128) + 200)
    assert count(page) == everything and page.inner_text("#count") == f"{everything} samples"


def test_a_sample_tells_its_story(run_dir, watched):
    """A repaired label: its answer, verdict and difference, and the samples that grew from it, there and back."""
    expanded = rows_of(f"{run_dir}/round-1/expand/expanded.jsonl")
    child = expanded[0]
    parent = child["origin"]["parent"]
    probe = next(row for row in rows_of(f"{run_dir}/round-1/probe/probes.jsonl") if row["id"] == parent)
    watch = watched(run_dir, **DESK)
    page = watch.open()
    page.select_option("#kind", "expanded")
    expect(page, "document.querySelectorAll('#results li').length < 20")
    page.click(f"#results a[href*='sample={child['id']}']")
    page.wait_for_selector("#sample-title")
    assert page.inner_text("#sample-title") == child["id"]
    assert page.evaluate("document.activeElement.id") == "sample-title"
    page.click(f"#sample .tree a:text-is('{parent}')")
    expect(page, f"document.getElementById('sample-title').textContent === '{parent}'")
    text = page.inner_text("#sample")
    assert f"{probe['perplexity']:.3f}" in text and probe["reason"] in text and "One of the two says" in text
    siblings = page.eval_on_selector_all("#sample .tree a", "links => links.map(a => a.textContent)")
    assert child["id"] in siblings
    label, answer = (page.inner_text(f"#sample .pair > div:nth-child({n}) pre") for n in (1, 2))
    marked = page.locator("#sample .pair del").count() + page.locator("#sample .pair ins").count()
    assert label != answer and marked
    page.go_back()
    expect(page, f"document.getElementById('sample-title').textContent === '{child['id']}'")
    page.go_back()
    expect(page, "document.getElementById('sample').hidden")
    assert page.input_value("#kind") == "expanded", "the filter is as it was"
    page.go_forward()
    expect(page, f"document.getElementById('sample-title')?.textContent === '{child['id']}'")


def test_deep_links(run_dir, watched):
    heldout = rows_of(f"{run_dir}/seed/heldout.jsonl")[0]["id"]
    watch = watched(run_dir, **DESK)
    page = watch.open(f"#sample={heldout}")
    page.wait_for_selector("#sample-title")
    assert page.inner_text("#sample-title") == heldout and page.is_visible("#sample h4:text-is('Answers')")
    page = watch.page
    page.goto("about:blank")
    page = watch.open("#verdict=label_wrong&round=1")
    wanted = [row for row in rows_of(f"{run_dir}/round-1/judge/judgements.jsonl") if row["verdict"] == "label_wrong"]
    expect(page, f"document.querySelectorAll('#results li').length === {len(wanted)}")
    page.goto("about:blank")
    page = watch.open("#training")
    expect(page, "document.querySelectorAll('#results li').length > 0")
    expect(page, "Math.abs(document.getElementById('training').getBoundingClientRect().top) < 100")
    page.evaluate("location.hash = '#sample=nobody'")
    page.wait_for_selector("#sample :text('holds no such sample')")
    page.click("#labels details summary")
    page.click("#labels details[open] p.note a")
    page.wait_for_selector("#sample h4:text-is('Answers')")


def test_by_keyboard_alone(run_dir, watched):
    page = watched(run_dir, **DESK).open()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    assert page.evaluate("document.activeElement.getBoundingClientRect().left") >= 0, "it comes into view"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    visited: list[str] = []
    for _ in range(400):
        page.keyboard.press("Tab")
        where = page.evaluate(
            "(() => { const e = document.activeElement; const s = getComputedStyle(e);"
            " return [e.tagName + '#' + e.id + '.' + (e.name || e.hash || e.textContent.slice(0, 30)),"
            " s.outlineStyle !== 'none' && parseFloat(s.outlineWidth) >= 2, e.closest('section')?.id || '']; })()"
        )
        if where[0].startswith("BODY"):
            break
        assert where[1], f"the focus is not to be seen on {where[0]}"
        visited.append(where[2])
        if where[0].startswith("INPUT"):
            page.keyboard.type("please")
            expect(page, "document.getElementById('count').textContent.includes(' of ')")  # the list is drawn anew
    assert "labels" in visited and "samples" in visited and visited[-1] == "configuration", "no trap"
    order = list(dict.fromkeys(filter(None, visited)))
    assert order == [
        name for name in page.eval_on_selector_all("main > section", "s => s.map(e => e.id)") if name in order
    ]
    page.focus("#results a")
    page.keyboard.press("Enter")
    page.wait_for_selector("#sample-title")
    page.keyboard.press("Shift+Tab")
    assert "Back to the list" in page.evaluate("document.activeElement.textContent")
    page.keyboard.press("Enter")
    expect(
        page, "document.getElementById('sample').hidden && document.activeElement.matches('#results li:first-child a')"
    )
    page.keyboard.press("Enter")
    page.wait_for_selector("#sample-title")
    page.focus("nav a[href='#training']")
    page.keyboard.press("Enter")
    expect(page, "Math.abs(document.getElementById('training').getBoundingClientRect().top) < 100")
    assert page.is_visible("#sample-title"), "a section's link leaves the sample open"


@pytest.mark.parametrize("width", [320, 400])
def test_on_a_phone_nothing_is_wider_than_the_screen(run_dir, hostile_run, watched, width):
    for run in (run_dir, hostile_run):
        page = watched(run, **{**PHONE, "viewport": {"width": width, "height": 700}}).open()
        page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true; })")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.click("#results a >> nth=0")
        page.wait_for_selector("#sample-title")
        page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true; })")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert not page.is_visible("#results"), "one sample at a time"
        page.click("#sample .back a")
        expect(page, "document.getElementById('sample').hidden")
        assert page.is_visible("#results")


CONTRAST = """() => {
  const numbers = (color) => color.match(/[\\d.]+/g).map(Number);
  const linear = (v) => (v / 255 <= .04045 ? v / 255 / 12.92 : ((v / 255 + .055) / 1.055) ** 2.4);
  const light = ([r, g, b]) => .2126 * linear(r) + .7152 * linear(g) + .0722 * linear(b);
  const behind = (element) => {
    for (let e = element; e; e = e.parentElement) {
      const [r, g, b, alpha] = numbers(getComputedStyle(e).backgroundColor);
      if (alpha !== 0) return [r, g, b];
    }
    return [255, 255, 255];
  };
  const low = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const e = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || !e.checkVisibility() || e.closest('script,title,desc,:disabled')) continue;
    const svg = e.namespaceURI.endsWith('svg');
    const ink = numbers(svg ? getComputedStyle(e).fill : getComputedStyle(e).color);
    const bar = svg && e.classList.contains('on') ? e.previousElementSibling : null;
    const paper = bar ? numbers(getComputedStyle(bar).fill) : behind(e);
    const [more, less] = [light(ink), light(paper)].sort((x, y) => y - x);
    if ((more + .05) / (less + .05) < 4.5) low.push(e.outerHTML.slice(0, 90));
  }
  return low;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_stands_out_in_light_and_in_the_dark(run_dir, watched, scheme):
    """WCAG's contrast of 4.5, over all texts of the page with a sample open."""
    page = watched(run_dir, color_scheme=scheme, **DESK).open()
    page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    page.select_option("#verdict", "label_wrong")
    page.click("#results a >> nth=0")
    page.wait_for_selector("#sample .pair")
    assert page.evaluate(CONTRAST) == []
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor") != "rgb(255, 255, 255)"
    assert dark == (scheme == "dark")


def test_roles_and_names(run_dir, watched):
    """What a screen reader is told: landmarks, headings, names of controls and charts."""
    page = watched(run_dir, **DESK).open()
    page.click("#results a >> nth=0")
    page.wait_for_selector("#sample-title")
    session = page.context.new_cdp_session(page)
    nodes = session.send("Accessibility.getFullAXTree")["nodes"]
    seen = [(n["role"]["value"], n.get("name", {}).get("value", "")) for n in nodes if not n["ignored"]]
    roles = Counter(role for role, _ in seen)
    assert roles["main"] == roles["navigation"] == roles["search"] == roles["banner"] == roles["article"] == 1
    assert roles["status"] == 1
    named = ["link", "button", "combobox", "searchbox", "image", "img", "table", "article", "navigation", "region"]
    assert not [role for role, name in seen if role in named and not name]
    charts = [name for role, name in seen if role in ("image", "img")]
    assert {"All held-out items", "By category", "Reward", "Gradient norm"} <= set(charts)
    headings = [n for n in nodes if not n["ignored"] and n["role"]["value"] == "heading"]
    levels = [p["value"]["value"] for n in headings for p in n["properties"] if p["name"] == "level"]
    assert levels[0] == 1 and all(b <= a + 1 for a, b in pairwise(levels))


def test_without_scripts_tables_charts_and_differences_read(run_dir, browser):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(f"file://{run_dir}/report.html")
    assert page.is_visible("#accuracy table") and page.is_visible("#training figure svg")
    page.click("#labels details summary")
    assert page.is_visible("#labels details[open] .pair")
    assert page.is_visible("#no-script") and not page.is_visible("#browser")
    context.close()


def test_on_paper(run_dir, watched):
    watch = watched(run_dir, color_scheme="dark", **DESK)
    page = watch.open()
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    page.emulate_media(media="print")
    assert not page.is_visible("nav") and page.is_visible("#labels .pair")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)", "ink on white"
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert not page.query_selector("#labels details[open]")


def test_nothing_moves_for_who_wants_it_still(run_dir, watched):
    page = watched(run_dir, reduced_motion="reduce", **DESK).open()
    moving = "e => getComputedStyle(e).transitionDuration !== '0s' || getComputedStyle(e).animationName !== 'none'"
    assert not page.evaluate(f"[...document.querySelectorAll('*')].some({moving})")
    assert page.evaluate("getComputedStyle(document.documentElement).scrollBehavior") == "auto"


def test_hostile_texts_do_nothing_in_the_browser(hostile_run, watched):
    """Every sample of the run is opened; none changes the title, asks for anything, or complains."""
    watch = watched(hostile_run, **DESK)
    page = watch.open()
    index = page.evaluate("document.querySelectorAll('#results a').length")
    assert index >= 40
    hashes = page.eval_on_selector_all("#results a", "links => links.map(a => a.hash)")
    for hash_ in hashes[::3]:
        page.evaluate("hash => { location.hash = hash; }", hash_)
        name = json.dumps(unquote(re.search("sample=([^&]*)", hash_)[1].replace("+", " ")))
        expect(page, f"document.getElementById('sample-title')?.textContent === {name}")
    page.fill("input[name=text]", "</script>")
    expect(page, "!document.getElementById('count').textContent.startsWith('Unpacking')")
    assert count(page) >= 40
    assert page.title() == "LoopTool run"
    assert page.evaluate("document.querySelectorAll('img').length") == 0
    assert page.evaluate("document.querySelectorAll('#sample script, #results script').length") == 0


def test_what_the_report_needs_is_in_it(run_dir, watched, tmp_path):
    """Moved to another folder under another name, offline."""
    (tmp_path / "elsewhere").mkdir()
    moved = tmp_path / "elsewhere/report.html"
    moved.write_bytes(Path(run_dir, "report.html").read_bytes())
    watch = watched(str(moved.parent), offline=True, **DESK)
    page = watch.open(
        f"#sample={quote(json.loads(Path(run_dir, 'seed/heldout.jsonl').read_text().splitlines()[0])['id'])}"
    )
    page.wait_for_selector("#sample-title")
