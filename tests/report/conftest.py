"""Runs to report, one of the procedural world and one whose every text is hostile; a browser, where there is one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from looptool_jax.data.store import write_samples
from looptool_jax.report.html import write_report
from looptool_jax.toolcall import Call, Message, Sample, Target, Tool

from .scripted_run import make_run

ATTACK = (
    "</script><script>document.title='owned'</script><!--<script>\"'&</pre><img src=x onerror=alert(2)>"
    "[bold]\u2028\u2029\u202eevil\u2066 \ud800\udfff\x00\x1b[2J javascript:alert(1) ${1} `x` __proto__ \ufeff"
)
LONG = "<b>" + "x" * 1_000_000
ARGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip


@pytest.fixture(scope="session")
def monkeypatch_session():
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.fixture(scope="session")
def run_dir(tmp_path_factory, monkeypatch_session) -> str:
    """Two rounds on samples of the world, finished and reported."""
    run = make_run(tmp_path_factory.mktemp("world") / "run", monkeypatch_session)
    write_report(run)
    return run


@pytest.fixture(scope="session")
def hostile_run(tmp_path_factory, monkeypatch_session) -> str:
    """A run on a file of samples in which everything that can be text is hostile; so is what the models write."""
    folder = tmp_path_factory.mktemp("hostile")
    write_samples(folder / "samples.jsonl", [_hostile(number) for number in range(80)])
    settings = [f"data.source={folder / 'samples.jsonl'}", "expand.prompt=full", "data.noise=0.2"]
    run = make_run(folder / "run", monkeypatch_session, *settings, spoil=_spoilt)
    (Path(run) / "config.yaml").write_text(f"run_dir: {ATTACK}\n", "utf-8", "ignore")
    write_report(run)
    return run


def _hostile(number: int) -> Sample:
    properties = {ATTACK: {"type": "string", "description": ATTACK}}
    tool = Tool(f"tool {number % 3} {ATTACK}", ATTACK, {"type": "object", "properties": properties})
    words = LONG if number == 0 else f"{number} {ATTACK}"
    target = Target((Call(tool.name, {ATTACK: f"{number}"}),)) if number % 4 else Target(text=ATTACK, intent="answer")
    return Sample(f"{ATTACK} {number}", (tool,), (Message("user", words),), target, category=f"{ATTACK}{number % 2}")


def _spoilt(text: str) -> str:
    return text if "<tool_call>" in text else f"{text} {ATTACK}"


@pytest.fixture(scope="session")
def browser():
    """Headless Chromium: the machine's own, or the one that Playwright has installed."""
    playwright = pytest.importorskip("playwright.sync_api", reason="the browser tests need playwright")
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    with playwright.sync_playwright() as session:
        try:
            found = session.chromium.launch(executable_path=path, args=ARGS)
        except playwright.Error as error:
            pytest.skip(f"no Chromium here ({str(error).splitlines()[0]})")
        yield found
        found.close()


class Watched:
    """A page of the report whose console, errors and requests are looked at."""

    def __init__(self, page, url: str) -> None:
        self.page, self.url = page, url
        self.problems: list[str] = []
        self.requests: list[str] = []
        page.on("console", lambda message: self.problems.append(message.text))
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        page.on("request", lambda request: self.requests.append(request.url))

    def open(self, fragment: str = ""):
        self.page.goto(self.url + fragment)
        self.page.wait_for_selector("#browser:not([hidden])")
        self.page.wait_for_function("document.getElementById('count').textContent !== ''")
        return self.page

    def quiet(self) -> None:
        assert not self.problems, self.problems
        assert {request.partition("#")[0] for request in self.requests} <= {self.url}, "nothing is asked of the network"


@pytest.fixture
def watched(browser):
    """Opens a report with the settings of a browser context; at the end nothing may have been complained about."""
    opened, contexts = [], []

    def look(run: str, **settings) -> Watched:
        contexts.append(browser.new_context(**settings))
        opened.append(Watched(contexts[-1].new_page(), f"file://{run}/report.html"))
        return opened[-1]

    yield look
    for context in contexts:
        context.close()
    for page in opened:
        page.quiet()


def rows_of(path: str | Path) -> list[dict]:
    """The rows of a file, read without the project's reader."""
    return [json.loads(line) for line in Path(path).read_text("utf-8").splitlines()]
