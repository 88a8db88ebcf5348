"""The pages in docs/: no public name is missing, and what they refer to is there. The build itself is `make docs`."""

import re
from pathlib import Path

import pytest

import fastxent as fx

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"

pytestmark = pytest.mark.skipif(not DOCS.is_dir(), reason="the source distribution has no docs")


def documented():
    """What the API page documents, in its order."""
    return re.findall(
        r"^\.\. auto(?:class|function|data):: fastxent\.(\w+)$", (DOCS / "api.rst").read_text(), re.MULTILINE
    )


def test_every_public_name_is_on_the_api_page_once():
    assert sorted(documented()) == sorted(fx.__all__)


def test_the_calls_of_every_loss_are_on_the_api_page():
    page = (DOCS / "api.rst").read_text()
    losses = [name for name in fx.__all__ if isinstance(getattr(fx, name), type)]
    assert len(losses) == 4
    assert len(re.findall(r"^   :members: value_and_grad, value_grad_hess$", page, re.MULTILINE)) == len(losses)
    assert len(re.findall(r"^   :special-members: __call__$", page, re.MULTILINE)) == len(losses)


def test_every_target_the_pages_name_is_in_the_makefile():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {t for page in DOCS.glob("*.rst") for t in re.findall(r"``make ([a-z-]+)``", page.read_text())}
    assert named
    assert named <= targets


def test_the_readme_leads_to_the_pages():
    assert "(docs/)" in (ROOT / "README.md").read_text()
