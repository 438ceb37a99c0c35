"""What all live tests share: they need root, and they run netbpf itself from the source tree."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

import crowd as crowds
import harness
import hidden
import pytest
import topology
from _pytest.runner import runtestprotocol
from peer_tools import Record, Tool
from topology import Host

HERE = Path(__file__).parent
Netbpf = Callable[..., contextlib.AbstractContextManager[harness.Run]]
RUNS = pytest.StashKey[list[harness.Run]]()
ATTEMPTS = 3  # of a test that lacked what no BPF program can see here


class AtOnce:
    """Prints each failure as it happens: under emulation the end is far, and may never come."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Print a failure."""
        if report.failed:
            writer = self._config.get_terminal_writer()
            writer.line(f"\n{report.nodeid} ({report.when}):\n{report.longreprtext}")


class AgainIfHidden:
    """Runs a failed test again if the kernel kept events of its time from BPF: see hidden.py."""

    def __init__(self) -> None:
        self._witness = hidden.Witness()
        self._repeated: list[str] = []

    def pytest_runtest_protocol(self, item: pytest.Item, nextitem: pytest.Item | None) -> Any:
        """Do what pytest does, up to ATTEMPTS times; only the last reports count."""
        if not item.get_closest_marker("live"):
            return None
        item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        for attempt in range(1, ATTEMPTS + 1):
            with self._witness.watching() as kept:
                reports = runtestprotocol(item, nextitem=nextitem, log=False)
            failed = [report for report in reports if report.failed]
            if not failed or not kept or attempt == ATTEMPTS:
                break
            self._repeated += [f"{item.nodeid}: {len(kept)} events, first {kept[0]}"]
            self._repeated += [f"  {report.longreprtext.splitlines()[-1]}" for report in failed]
            item.stash[RUNS] = []
            item._initrequest()  # type: ignore[attr-defined]  # as pytest-rerunfailures does it
        for report in reports:
            item.ihook.pytest_runtest_logreport(report=report)
        item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        return True

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """Say what was run again, and why."""
        if self._repeated:
            terminalreporter.section("run again: this kernel hides process 1's time from BPF")
            terminalreporter.write("\n".join([*self._repeated, ""]))

    def pytest_unconfigure(self) -> None:
        """Leave nothing behind."""
        self._witness.close()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Any:
    """Add to the report of a failure what the tools said last: some failures come once a month."""
    outcome = yield
    report = outcome.get_result()
    if report.failed:
        for run in item.stash.get(RUNS, []):
            last = run.stdout.splitlines()[-1:]
            report.sections.append((" ".join(run.process.args), "\n".join([*last, run.stderr])))


def pytest_configure(config: pytest.Config) -> None:
    """Ask for failures at once where everything is slow."""
    if harness.SLOW > 1:
        config.pluginmanager.register(AtOnce(config))
    if not config.option.collectonly and hidden.hides_init():
        with contextlib.suppress(OSError):  # no ftrace, no witness: a failure is one
            config.pluginmanager.register(AgainIfHidden())


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark everything in this directory as live; without root say how to run it."""
    no_root = pytest.mark.skip(reason="live tests need root: sudo make live")
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.live)
            if os.geteuid() != 0:
                item.add_marker(no_root)


@pytest.fixture
def netbpf(tmp_path: Path, request: pytest.FixtureRequest) -> Netbpf:
    """Return the context manager that runs a tool: see harness.running."""
    numbers = itertools.count(1)
    runs = request.node.stash.setdefault(RUNS, [])

    @contextlib.contextmanager
    def run(tool: str, *words: object, **options: Any) -> Iterator[harness.Run]:
        directory = tmp_path / f"run-{next(numbers)}"
        directory.mkdir()
        with harness.running(directory, tool, *words, **options) as running:
            runs.append(running)
            yield running

    return run


@pytest.fixture(scope="module")
def two_hosts() -> Iterator[tuple[Host, Host]]:
    """Two namespaces joined by a veth pair, for all tests of a module."""
    with topology.two_hosts() as hosts:
        yield hosts


@pytest.fixture(scope="module")
def one_host() -> Iterator[Host]:
    """A namespace with nothing but lo, for all tests of a module."""
    with topology.one_host() as host:
        yield host


@pytest.fixture(scope="module")
def crowd(two_hosts: tuple[Host, Host]) -> Iterator[crowds.Crowd]:
    """Clients and servers of TCP, for all tests of a module."""
    with crowds.gathered(*two_hosts) as everybody:
        yield everybody


@pytest.fixture
def record(request: Any, record_testsuite_property: Callable[[str, object], None]) -> Record:
    """Return what notes a peer's words, under the test's name, in the report (--junitxml)."""

    def note(tool: Tool, said: object) -> None:
        record_testsuite_property(f"{request.node.name}: {tool} {tool.version()}", str(said))

    return note
