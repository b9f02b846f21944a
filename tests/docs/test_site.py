"""The documentation as a site: it builds without a warning, and its pages fetch nothing from elsewhere."""

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
FETCHED = {"script": "src", "img": "src", "iframe": "src", "source": "src", "link": "href"}


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    pytest.importorskip("material", reason="mkdocs-material is not installed (the extra docs)")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    env = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    return folder


class Fetches(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        if tag in FETCHED and values.get("rel") not in ("canonical", "next", "prev"):
            self.addresses.append(values.get(FETCHED[tag]) or "")


def test_pages_fetch_nothing_from_elsewhere(site):
    pages = list(site.rglob("*.html"))
    assert len(pages) > 20
    for page in pages:
        reader = Fetches()
        reader.feed(page.read_text())
        assert reader.addresses, page
        assert not [at for at in reader.addresses if re.match(r"(https?:)?//", at)], page
        assert "fonts.googleapis" not in page.read_text()
    for style in site.rglob("*.css"):
        assert not re.search(r"url\([\"']?(https?:)?//|@import", style.read_text()), style


def test_every_page_is_in_the_navigation():
    """What other pages link to can be reached from the side of every page."""
    named = re.findall(r"[\w/]+\.md", yaml.safe_dump(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]))
    assert len(named) == len(set(named))
    assert all((ROOT / "docs" / name).is_file() for name in named)
    for name in named:
        text = (ROOT / "docs" / name).read_text()
        assert text.startswith("# "), f"{name} has no title"
    assert {"METHOD.md", "CONFIGURATION.md", "COMMANDS.md", "SECURITY.md", "FIRST_RUN.md"} <= set(named)


def test_links_of_the_readme_lead_somewhere():
    text = (ROOT / "README.md").read_text()
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text)
    assert len(links) > 20
    assert not [link for link in links if not link.startswith("http") and not (ROOT / link).exists()]


def test_the_readme_is_of_readable_length():
    assert len((ROOT / "README.md").read_text().splitlines()) < 220


NAMED = re.compile(r"`((?:cli|data|evaluation|inference|loop|models|parallel|report|toolcall|training|world)/[\w/.]+)`")


@pytest.mark.parametrize("page", ["METHOD.md", "ARCHITECTURE.md", "PERFORMANCE.md"])
def test_files_and_functions_that_the_text_names_are_there(page):
    text = (ROOT / "docs" / page).read_text()
    package = ROOT / "looptool_jax"
    for name in NAMED.findall(text):
        assert (package / name).exists(), f"{page}: {name}"
    if page == "METHOD.md":
        pairs = re.findall(r"`([\w/]+\.py)`: ((?:`\w+`(?:, )?)+)", text)
        assert len(pairs) >= 15
        for name, functions in pairs:
            source = (package / name if "/" in name else package / "loop/synthesis" / name).read_text()
            for function in re.findall(r"\w+", functions):
                defined = rf"^(def |class ){function}\b|^{function}\b"
                assert re.search(defined, source, re.MULTILINE), f"{name}: {function}"
