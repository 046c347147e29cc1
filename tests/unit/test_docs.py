"""What the documents name is there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs").glob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_names_tests_and_commands_that_are_there(page):
    text = page.read_text()
    tests = set(re.findall(r"\btest_\w+\.py\b", text))
    missing = {name for name in tests if not list((ROOT / "tests").rglob(name))}
    assert not missing
    assert not {name for name in re.findall(r"`(\.ci/\w+)", text) if not (ROOT / name).exists()}
    links = [link for link in re.findall(r"\]\(([^)#]+)", text) if "://" not in link]
    assert not [link for link in links if not (page.parent / link).exists()]
