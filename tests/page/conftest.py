"""One Chromium for a module; every visitor of a test is looked at when it ends."""

from collections.abc import Callable, Iterator

import pytest
from browser_support import Browsers, Visitor, browsers
from http_support import HttpDoor


@pytest.fixture(scope="module")
def browser() -> Iterator[Browsers]:
    # Of a module, not of the session: Playwright's loop runs in this thread, and other tests have loops of their own.
    with browsers() as opened:
        yield opened


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HttpDoor]:
    door = HttpDoor(tmp_path_factory.mktemp("door"))
    yield door
    door.close()


@pytest.fixture
def visit(browser: Browsers) -> Iterator[Callable[..., Visitor]]:
    """Opens a page; afterwards none has spoken to another host, broken the policy, or thrown."""
    yield browser.visitor
    for visitor in browser.leave():
        assert not visitor.faults
        assert visitor.hosts == {visitor.url.partition("://")[2]}
