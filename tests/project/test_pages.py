"""The pages hang together: docs/README.md lists all of them, every link and anchor leads somewhere, no install line asks an index for us."""

import re
import subprocess
from pathlib import Path

import pytest
from document_blocks import PAGES, ROOT, prose

LINK = re.compile(r"!?\[[^\]]*\]\(([^()\s]+)\)")
OF_AN_INDEX = re.compile(
    r"\b(?:pip|pipx|uv|conda|poetry|uvx)3?\s+(?:pip\s+)?(?:install|add|download|run)\s(?:[^\n`#(]*\s)?['\"]?dynadapt(?![\w./-])|\buvx dynadapt\b"
)


def anchors(page: Path) -> set[str]:
    """The names that GitHub gives to the headings of a page."""
    found: dict[str, int] = {}
    for title in re.findall(r"(?m)^#{1,6} (.*)$", re.sub(r"(?ms)^```.*?^```$", "", page.read_text())):
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title).strip().lower()
        name = re.sub(r"[^\w\- ]", "", words).replace(" ", "-")
        found[name] = found.get(name, -1) + 1
        if found[name]:
            found[f"{name}-{found[name]}"] = 0
    return set(found)


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page):
    for target in LINK.findall(prose(page)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        there = (ROOT / page).parent / path if path else ROOT / page
        assert there.exists(), f"{page}: {target}"
        assert not anchor or anchor in anchors(there), f"{page}: {target}: that page has {sorted(anchors(there))}"


def test_the_index_has_every_page_once():
    index = (ROOT / "docs" / "README.md").read_text()
    linked = [target for target in LINK.findall(index) if not re.match(r"[a-z]+:", target)]
    pages = sorted(path.name for path in (ROOT / "docs").glob("*.md") if path.name != "README.md")
    assert sorted(linked) == pages
    assert "docs/README.md" in LINK.findall((ROOT / "README.md").read_text())


def test_no_install_line_asks_an_index_for_a_package_of_our_name():
    """The name is not ours there: the project is installed from a checkout."""
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")
    for name in filter(None, files):
        path = ROOT / name
        if path == Path(__file__):  # it holds such lines, as cases
            continue
        if path.suffix in (".py", ".md", ".toml", ".yaml", ".yml", ".txt", ".cmake", ".h", ".cpp", ".cu", "") and path.is_file():
            assert not (found := OF_AN_INDEX.search(path.read_text(errors="replace"))), (name, found[0])


@pytest.mark.parametrize(
    "line, asks",
    [
        ("pip install dynadapt", True),
        ("pip install 'dynadapt[plot]'", True),
        ("python -m pip install -q dynadapt==0.1", True),
        ("uv add dynadapt", True),
        ('pip install -U "dynadapt[hf]"', True),
        ("pip install .", False),
        ("pip install -e '.[plot]'", False),
        ("pip install dist/dynadapt-0.1.whl", False),
        ("pip install dynadapt-0.1.0.whl", False),
    ],
)
def test_what_counts_as_such_a_line(line, asks):
    assert bool(OF_AN_INDEX.search(line)) == asks
