"""pytest plugin: the fixtures `tester`, `server` and `bester_app`; loaded by pytest where Bester is installed.

The app is named once, as `bester_app = "letters:app"` in pytest's ini options (or `--bester-app letters:app`), or given
by a fixture `bester_app` of the test's own, which returns the App.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from bester.handlers.testing import Tester
    from bester.handlers.testing_server import Server

OPTION = "bester_app"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options that name the app."""
    parser.addini(OPTION, "the Bester app that `tester` and `server` run, as MODULE:APP", default="")
    parser.addoption("--bester-app", metavar="MODULE:APP", help="the Bester app that `tester` and `server` run")


def _spec(config: pytest.Config) -> str:
    spec = str(config.getoption("--bester-app") or config.getini(OPTION))
    if not spec:
        pytest.fail('no app is named; add bester_app = "MODULE:APP" to the ini options of pytest', pytrace=False)
    return spec


@pytest.fixture
def bester_app(pytestconfig: pytest.Config) -> Any:
    """The App under test; override this fixture to give another."""
    from bester.handlers.loading import LoadError, load

    try:
        return load(_spec(pytestconfig))
    except LoadError as error:
        pytest.fail(str(error), pytrace=False)


@pytest.fixture
def tester(bester_app: Any) -> Tester:
    """A Tester of the app: its handlers run in the test itself, without sockets."""
    from bester.handlers.testing import Tester

    return Tester(bester_app)


@pytest.fixture
def server(pytestconfig: pytest.Config) -> Iterator[Server]:
    """A real server on a free port that runs the app in a process of its own; any user may log in."""
    from bester.handlers.testing_server import running

    with running(_spec(pytestconfig), pytestconfig.rootpath) as found:
        yield found
