"""The plugin for pytest: the fixtures ``mail_catcher``, ``make_mail_catcher`` and their server.

It is loaded in every run of pytest where the package is installed, so it imports nothing of the
package before a test asks for a fixture. Its entry point has its own name, so that ``-p`` and
``pytest_plugins`` do not register it twice. PYTEST_DONT_REWRITE: it asserts nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Callable, Dict, Generator, Iterator, List

import pytest

if TYPE_CHECKING:
    from .testing import MailCatcher

__all__: List[str] = []

USED = pytest.StashKey[List["MailCatcher"]]()
MARKER = "mail_catcher(**options): options of MailCatcher for the fixture mail_catcher"


def pytest_configure(config: pytest.Config) -> None:
    """Make the marker known."""
    config.addinivalue_line("markers", MARKER)


@pytest.fixture(scope="session")
def mail_catcher_server() -> Iterator[MailCatcher]:
    """Catch mail for all tests that use ``mail_catcher``; each worker of xdist has its own."""
    from .testing import MailCatcher

    with MailCatcher() as catcher:
        yield catcher


@pytest.fixture
def make_mail_catcher(request: pytest.FixtureRequest) -> Iterator[Callable[..., MailCatcher]]:
    """Start any number of catchers, ``make_mail_catcher(**options)``, until the test is over."""
    from contextlib import ExitStack

    from .testing import MailCatcher

    with ExitStack() as stack:

        def make(**options: Any) -> MailCatcher:
            catcher = stack.enter_context(MailCatcher(**options))
            used_by(request.node).append(catcher)
            return catcher

        yield make


@pytest.fixture
def mail_catcher(request: pytest.FixtureRequest) -> Iterator[MailCatcher]:
    """Catch the mail of one test: nothing is caught when it begins, and there are no faults.

    ``@pytest.mark.mail_catcher(auth=True)`` gives the test a server of its own, with these options
    of ``MailCatcher``.
    """
    options = marked(request.node)
    if options:
        yield request.getfixturevalue("make_mail_catcher")(**options)
        return
    catcher: MailCatcher = request.getfixturevalue("mail_catcher_server")
    catcher.clear()
    catcher.no_faults()
    used_by(request.node).append(catcher)
    yield catcher
    catcher.no_faults()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, None]:
    """Tell what was said and caught, where a test fails."""
    outcome = yield
    report: pytest.TestReport = outcome.get_result()
    if report.failed:
        for catcher in used_by(item):
            report.sections.append((f"Mail catcher {catcher.url}", catcher.report()))


def marked(item: pytest.Item) -> Dict[str, Any]:
    """Give the options of the markers; the nearest to the test wins."""
    options: Dict[str, Any] = {}
    for marker in reversed(list(item.iter_markers("mail_catcher"))):
        if marker.args:
            raise ValueError("@pytest.mark.mail_catcher takes keywords, as MailCatcher does")
        options.update(marker.kwargs)
    return options


def used_by(item: pytest.Item) -> List[MailCatcher]:
    """Give the catchers of a test."""
    return item.stash.setdefault(USED, [])
