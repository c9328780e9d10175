"""Fixtures of the long comparisons: figures below the tests' results, and references that a run computes once."""

from collections.abc import Callable
from functools import partial

import pytest

from inference_server.precision import Precision
from tests.exact.kept_references import kept_references
from tests.exact.reference import Reference, TokenIds


@pytest.fixture
def report(record_property: Callable[[str, object], None]) -> Callable[[str], None]:
    """Return a function that prints a figure below the tests' results, also from one of several processes."""
    return partial(record_property, "figure")


@pytest.fixture
def references(pytestconfig: pytest.Config) -> Callable[[Precision, list[TokenIds]], list[Reference]]:
    """Return `generate` with its results kept in pytest's cache folder."""
    assert pytestconfig.cache is not None
    return kept_references(pytestconfig.cache.mkdir("references"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for outcome in ("passed", "failed"):
        for test in terminalreporter.stats.get(outcome, []):
            for name, value in test.user_properties:
                if name == "figure":
                    terminalreporter.write_line(value)
