"""Fixtures of all live tests: they need root, and run netbpf from the source tree."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

import calls
import crowd as crowds
import harness
import hidden
import pytest
import topology
import traffic
from _pytest.runner import runtestprotocol
from alternatives import Stage
from peer_tools import Record, Tool
from topology import Host

HERE = Path(__file__).parent
Netbpf = Callable[..., contextlib.AbstractContextManager[harness.Run]]
RUNS = pytest.StashKey[list[harness.Run]]()
ATTEMPTS = 3  # of a test that missed events which this kernel hides from BPF programs


class ImmediateReport:
    """Prints each failure immediately: under emulation a run is slow, and may be aborted."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Print a failure."""
        if report.failed:
            writer = self._config.get_terminal_writer()
            writer.line(f"\n{report.nodeid} ({report.when}):\n{report.longreprtext}")


class RepeatIfHidden:
    """Repeats a failed test if the kernel hid events from BPF meanwhile: see hidden.py."""

    def __init__(self) -> None:
        self._witness = hidden.Witness()
        self._repeated: list[str] = []

    def pytest_runtest_protocol(self, item: pytest.Item, nextitem: pytest.Item | None) -> Any:
        """Run a test as pytest does, up to ATTEMPTS times; only the last reports count."""
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
        """List the repeated tests, and why."""
        if self._repeated:
            terminalreporter.section(
                "repeated: this kernel hides events in the time of process 1 from BPF"
            )
            terminalreporter.write("\n".join([*self._repeated, ""]))

    def pytest_unconfigure(self) -> None:
        """Close the witness."""
        self._witness.close()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Any:
    """Add the tools' last output to the report of a failure, as some failures are rare."""
    outcome = yield
    report = outcome.get_result()
    if report.failed:
        for run in item.stash.get(RUNS, []):
            last = run.stdout.splitlines()[-1:]
            report.sections.append((" ".join(run.process.args), "\n".join([*last, run.stderr])))


def pytest_configure(config: pytest.Config) -> None:
    """Register immediate reports on slow machines, and repetition on kernels that hide events."""
    if harness.SLOW > 1:
        config.pluginmanager.register(ImmediateReport(config))
    if not config.option.collectonly and hidden.hides_init():
        with contextlib.suppress(OSError):  # without ftrace there is no witness, and no repetition
            config.pluginmanager.register(RepeatIfHidden())


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark all tests in this directory as live, and skip them without root."""
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
    def run(tool: str, *args: object, **options: Any) -> Iterator[harness.Run]:
        directory = tmp_path / f"run-{next(numbers)}"
        directory.mkdir()
        with harness.running(directory, tool, *args, **options) as running:
            runs.append(running)
            yield running

    return run


@pytest.fixture(scope="module")
def two_hosts() -> Iterator[tuple[Host, Host]]:
    """Two namespaces connected by a veth pair, for all tests of a module."""
    with topology.two_hosts() as hosts:
        yield hosts


@pytest.fixture(scope="module")
def one_host() -> Iterator[Host]:
    """A namespace with only lo, for all tests of a module."""
    with topology.one_host() as host:
        yield host


@pytest.fixture(scope="module")
def crowd(two_hosts: tuple[Host, Host]) -> Iterator[crowds.Crowd]:
    """Clients and servers of TCP, for all tests of a module."""
    with crowds.gathered(*two_hosts) as everybody:
        yield everybody


@pytest.fixture
def record(request: Any, record_testsuite_property: Callable[[str, object], None]) -> Record:
    """Return a function that adds a peer's output to the report (--junitxml)."""

    def note(tool: Tool, output: object) -> None:
        record_testsuite_property(f"{request.node.name}: {tool} {tool.version()}", str(output))

    return note


@pytest.fixture(scope="module")
def stage(two_hosts: tuple[Host, Host], one_host: Host) -> Iterator[Stage]:
    left, right = two_hosts
    with traffic.peers() as new, calls.callers() as start_caller:
        client, server = new("nb-client", left), new("nb-server", right)
        for family in traffic.FAMILIES[:3]:
            server.listen(family)
        yield Stage(one_host, left, right, client, server, start_caller())
