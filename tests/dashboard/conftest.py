"""Sites: an empty one, one with a week of history, and a fresh one for whoever changes things."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.dashboard.site import Site, fill, new_sandbox, open_site, run_some, telling_settings


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """Nobody has set it up."""
    with open_site(tmp_path) as opened:
        yield opened


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Set up, and nothing else; not to be changed."""
    with open_site(tmp_path_factory.mktemp("empty")) as opened:
        opened.owner()
        yield opened


@pytest.fixture(scope="module")
def used(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A team of four and a week of requests; not to be changed."""
    with open_site(tmp_path_factory.mktemp("used"), settings=telling_settings(), sandbox=new_sandbox()) as opened:
        opened.owner()
        fill(opened)
        run_some(opened)
        opened.ask(opened.key(name="scratch").key)
        yield opened
