"""A browser for the pages of all tests of a module."""

import pytest
from browser import browser


@pytest.fixture(scope="module")
def tab(tmp_path_factory):
    with browser(tmp_path_factory.mktemp("chromium")) as opened:
        yield opened
