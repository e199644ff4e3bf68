"""One cluster as it comes, for all who leave it as they found it: each looks at studies of its own."""

from collections.abc import Generator, Iterator
from typing import Any

import pytest
from faults_support import Running

_failed = pytest.StashKey[bool]()


@pytest.fixture(scope="session")
def clusters() -> Iterator[list[Running]]:
    made: list[Running] = []
    yield made
    for running in made:
        running.__exit__(None, None, None)


@pytest.fixture
def running(clusters: list[Running], request: pytest.FixtureRequest) -> Iterator[Running]:
    """A cluster with the usual settings; whoever fails leaves the next another one."""
    if not clusters:
        clusters.append(Running())
    yield clusters[0]
    if request.node.stash.get(_failed, False):
        clusters.pop().__exit__(None, None, None)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: Any, call: pytest.CallInfo[None]) -> Generator[None, pytest.TestReport]:
    report: pytest.TestReport = yield
    if report.failed and call.when == "call" and "running" in item.funcargs:
        item.stash[_failed] = True
        report.sections.append(("the cluster's logs", item.funcargs["running"].logs()))
    return report
