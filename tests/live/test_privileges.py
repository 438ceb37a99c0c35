"""What a tool may still do while it runs, and what it does with less than root's privileges.

The truth is what the kernel says of each thread in /proc/PID/status.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import harness
import pytest
import topology
from harness import SOURCE_TREE, command, wait_until
from topology import Host

from netbpf.declare.tool import find_tool, tool_names
from netbpf.system.privileges import CAPABILITIES, capabilities

pytestmark = pytest.mark.beside

NOBODY = 65534
# Of each tool, beside those that an old kernel takes for maps, and for the CPU where limits cannot
# be raised.
MAY_KEEP = {"CAP_BPF", "CAP_SYS_NICE"}
LOOKUPS = {
    "CAP_SYS_ADMIN", "CAP_PERFMON", "CAP_SYS_PTRACE", "CAP_DAC_READ_SEARCH",
    "CAP_CHECKPOINT_RESTORE",
}  # fmt: skip
HELPER = ["CAP_DAC_READ_SEARCH", "CAP_SYS_ADMIN", "CAP_SYS_PTRACE"]
TRACEFS = 'mount -t tracefs none /sys/kernel/tracing && exec "$@"'


def status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def names(mask: str) -> list[str]:
    return sorted(name for bit, name in enumerate(CAPABILITIES) if int(mask, 16) >> bit & 1)


def children(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(word) for task in tasks for word in task.read_text().split()]


def descendants(pid: int) -> list[int]:
    found = children(pid)
    return [*found, *(one for child in found for one in descendants(child))]


def confined(pid: int) -> list[str]:
    """Return what a process keeps; it must be the same in all its threads, and in all sets."""
    kept = []
    for task in os.listdir(f"/proc/{pid}/task"):
        found = status(int(task))
        assert int(found["CapInh"], 16) == int(found["CapAmb"], 16) == 0
        assert found["CapEff"] == found["CapPrm"] == found["CapBnd"], found
        assert (found["NoNewPrivs"], found["Seccomp"]) == ("1", "2")
        kept.append(names(found["CapEff"]))
    assert kept == kept[:1] * len(kept)
    return kept[0]


# --- as root -------------------------------------------------------------------------------------


@pytest.mark.parametrize("tool", tool_names())
def test_tool_keeps_what_it_names_and_no_more(netbpf: Any, tool: str) -> None:
    with netbpf(tool, "-v") as run:
        kept = confined(run.process.pid)
        helpers = descendants(run.process.pid)
        helped = [confined(helper) for helper in helpers]
        said = run.stderr
    assert set(kept) <= MAY_KEEP
    if "CAP_SYS_RESOURCE" in capabilities():
        assert "CAP_SYS_NICE" not in kept
    declared = find_tool(tool)
    assert helped and helped == helped[:1] * len(helped)
    if tool == "gethostlatency":
        assert set(helped[0]) <= LOOKUPS | MAY_KEEP
    else:
        assert helped == [HELPER if declared.namespace_counters else ["CAP_SYS_ADMIN"]]
    described = run.summary["privileges"]
    assert described == {
        "kept": kept, "helper": helped[0], "no_new_privs": True, "seccomp": True,
    }  # fmt: skip
    for name in kept:
        assert f"netbpf: keeps {name} to " in said
    for name in described["helper"]:
        assert f"netbpf: a helper process keeps {name} to " in said
    assert ("keeps no capability" in said) is not bool(kept)


def test_no_file_can_be_made_once_the_ready_file_is_there(netbpf: Any) -> None:
    with netbpf("tcplife") as run:
        found = status(run.process.pid)
    if "Seccomp_filters" not in found:
        pytest.skip("needs Linux 5.9, where /proc counts filters")
    assert found["Seccomp_filters"] == "2"


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that everybody may enter, which pytest's are not."""
    with tempfile.TemporaryDirectory(prefix="netbpf-test-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


def test_ready_file_of_another_users_directory_is_removed_at_the_end(place: Path) -> None:
    output = place / "output"
    output.mkdir()
    theirs = place / "theirs"
    theirs.mkdir()
    os.chown(theirs, 1234, 1234)
    run = harness.start(output, "tcplife", "-v", "--ready-file", theirs / "ready")
    run.ready_file = theirs / "ready"
    with harness.attended(run):
        kept = confined(run.process.pid)
    assert "CAP_DAC_OVERRIDE" in kept and set(kept) <= MAY_KEEP | {"CAP_DAC_OVERRIDE"}
    assert "keeps CAP_DAC_OVERRIDE to remove --ready-file" in run.stderr
    assert list(theirs.iterdir()) == []


def test_without_the_binding_capabilities_are_given_up_all_the_same(
    netbpf: Any, tmp_path: Path
) -> None:
    (tmp_path / "seccomp.py").write_text("raise ImportError('not here')\n")
    path = f"{tmp_path}:{SOURCE_TREE}"
    with netbpf("tcplife", "-v", env={**os.environ, "PYTHONPATH": path}) as run:
        found = status(run.process.pid)
    assert set(names(found["CapEff"])) <= MAY_KEEP
    assert (found["NoNewPrivs"], found["Seccomp"]) == ("1", "0")
    assert run.summary["privileges"]["seccomp"] is False
    assert "system calls are not filtered: this Python has no module seccomp" in run.stderr


# --- the helper ----------------------------------------------------------------------------------


def test_helper_holds_nothing_of_the_tool_and_ends_with_it(tmp_path: Path) -> None:
    run = harness.start(tmp_path, "tcplife")
    try:
        run.wait_ready()
        (helper,) = children(run.process.pid)
        kinds = {os.readlink(file) for file in Path(f"/proc/{helper}/fd").iterdir()}
        assert len(kinds) == 2 and all(kind.startswith("pipe:") for kind in kinds)
        assert harness.programs_of(helper) == set()
    finally:
        harness.kill(run.process)
    wait_until(lambda: not Path(f"/proc/{helper}").exists(), what="the helper's end")


def test_signals_to_the_whole_group_leave_the_last_look_to_the_helper(
    netbpf: Any, one_host: Host
) -> None:
    with netbpf("skbdrop", start_new_session=True) as run:
        topology.must("ip", "netns", "exec", one_host.namespace, "true")
        send(one_host, 23)
        os.killpg(run.process.pid, signal.SIGINT)
        assert run.wait_end() == 0
    assert run.summary["counters"]["Udp.NoPorts"] >= 23
    assert not any("counters lack" in note for note in run.summary["notes"])


def send(host: Host, number: int) -> None:
    code = (
        "import socket\ns = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
        f"for _ in range({number}): s.sendto(b'x', ('127.0.0.1', 9))\n"
    )
    host.run("python3", "-c", code)


def test_run_goes_on_without_its_helper_and_says_so(netbpf: Any) -> None:
    with netbpf("tcplife") as run:
        (helper,) = children(run.process.pid)
        os.kill(helper, signal.SIGKILL)
        wait_until(lambda: status(helper)["State"].startswith("Z"), what="the helper's end")
        time.sleep(1.2)  # a look is due
    assert any("counters lack" in note for note in run.summary["notes"])


# --- with less -----------------------------------------------------------------------------------


def with_only(given: Sequence[str], *words: object, tracefs: bool = True) -> list[str]:
    """Return the command line of netbpf for a user without privileges but those `given`."""
    chosen = ",".join(["-all", *(f"+{name}" for name in given)])
    sets = [f"--{kind}={chosen}" for kind in ("inh-caps", "ambient-caps", "bounding-set")]
    user = [f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    mounted = ["unshare", "--mount", "sh", "-c", TRACEFS, "sh"] if tracefs else []
    hidden = ["unshare", "--mount", "sh", "-c", HIDE, "sh"] if not tracefs else []
    return [*mounted, *hidden, "setpriv", *user, *sets, *command(*words)]


HIDE = 'umount /sys/kernel/tracing 2>/dev/null; umount -l /sys/kernel/debug 2>/dev/null; exec "$@"'


def run_with(given: Sequence[str], *words: object, **more: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        with_only(given, *words, **more), cwd=SOURCE_TREE, text=True, capture_output=True,
        stdin=subprocess.DEVNULL, timeout=harness.START_TIMEOUT, check=False,
    )  # fmt: skip


BOTH = ("bpf", "perfmon")


@pytest.mark.parametrize(
    ("tool", "given", "named"),
    [
        ("tcplife", (), "CAP_BPF to load BPF programs, CAP_PERFMON to attach programs"),
        ("tcplife", ("bpf",), "CAP_PERFMON to attach programs"),
        ("tcplife", ("perfmon",), "CAP_BPF to load BPF programs"),
        ("sockstat", BOTH, "CAP_DAC_READ_SEARCH to read /sys/kernel/tracing"),
        ("soconnect", BOTH, "CAP_DAC_READ_SEARCH to read /sys/kernel/tracing"),
        ("soaccept", ("sys_admin",), "CAP_DAC_READ_SEARCH to read /sys/kernel/tracing"),
        ("skbdrop", BOTH, "CAP_SYSLOG to read the addresses of kernel functions"),
        ("gethostlatency", (*BOTH, "sys_admin"), "CAP_SYS_PTRACE to inspect processes"),
        ("gethostlatency", ("sys_admin",), "CAP_SYS_PTRACE to inspect processes"),
    ],
)
def test_what_a_tool_cannot_do_without_is_named(
    tool: str, given: tuple[str, ...], named: str
) -> None:
    done = run_with(given, tool, "-d", "0.2")
    assert done.returncode == 77, done.stderr
    error, hint = done.stderr.splitlines()
    assert named in error
    assert hint.startswith("hint: run it as root")
    assert "no such" not in done.stderr and "Traceback" not in done.stderr


def test_probes_of_programs_take_what_the_kernel_asks_for() -> None:
    done = run_with((*BOTH, "sys_ptrace", "dac_read_search"), "gethostlatency", "-d", "0.2")
    if done.returncode == 77:  # since ba677dbe77af
        assert "CAP_SYS_ADMIN to attach uprobes" in done.stderr
    else:
        assert done.returncode == 0, done.stderr
        assert "cannot be probed" not in done.stderr


def test_tracefs_that_is_not_mounted_is_a_matter_of_privileges() -> None:
    done = run_with((*BOTH, "dac_read_search"), "sockstat", "-d", "0.2", tracefs=False)
    assert done.returncode == 77, done.stderr
    assert "CAP_SYS_ADMIN to mount tracefs" in done.stderr


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("tcplife", "--max-overhead", "3"), "CAP_SYS_ADMIN to measure the run time"),
        (("tcplife", "--netns", "1"), "CAP_SYS_PTRACE to see which network namespace"),
        (("tcplife", "--netns", "4294967001"), "CAP_SYS_PTRACE to see which network namespace"),
        (("netsize", "-i", "netbpfnodev"), "CAP_SYS_ADMIN to list network devices in other"),
    ],
    ids=lambda words: words[1] if isinstance(words, tuple) else "",
)
def test_options_that_take_more_name_it(words: tuple[str, ...], named: str) -> None:
    done = run_with((*BOTH, "dac_read_search"), *words, "-d", "0.2")
    assert done.returncode == 77, done.stderr
    assert named in done.stderr


@pytest.fixture
def server() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0), backlog=16) as listening:
        yield listening


@contextlib.contextmanager
def running_with(
    directory: Path, given: Sequence[str], tool: str, *words: object, returncode: int = 0
) -> Iterator[harness.Run]:
    """Run a tool in a directory that it may write to."""
    os.chown(directory, NOBODY, NOBODY)
    line = with_only(given, tool, "--json", "--ready-file", directory / "ready", *words)
    with (directory / "stdout").open("wb") as out, (directory / "stderr").open("wb") as err:
        process = subprocess.Popen(line, cwd=SOURCE_TREE, stdout=out, stderr=err)
    with harness.attended(harness.Run(tool, process, directory), returncode=returncode) as run:
        yield run


def connect(server: socket.socket, number: int) -> None:
    for _ in range(number):
        client = socket.create_connection(server.getsockname())
        accepted, _ = server.accept()
        client.close()
        accepted.close()


@pytest.mark.parametrize("tool", ["tcplife", "soconnect", "soaccept"])
def test_events_are_exact_with_the_least_that_is_needed(
    place: Path, server: socket.socket, tool: str
) -> None:
    port = server.getsockname()[1]
    side = "-D" if tool == "soconnect" else "-L"
    number = 7
    with running_with(place, (*BOTH, "dac_read_search"), tool, side, port) as run:
        connect(server, number)
        run.wait_for(number)
        kept = names(status(run.process.pid)["CapPrm"])
    assert set(kept) <= MAY_KEEP
    assert len(run.events) == number
    assert {event["pid"] for event in run.events} == {os.getpid()}
    assert run.summary["complete"] is True, run.summary


def test_table_is_exact_with_the_least_that_is_needed(place: Path, server: socket.socket) -> None:
    with running_with(place, (*BOTH, "dac_read_search"), "sockstat", "-p", os.getpid()) as run:
        connect(server, 7)
    calls = {row["op"]: row["calls"] for row in run.rows if row["proto"] == "tcp4"}
    assert calls["connect"] == calls["accept"] == 7


@pytest.mark.parametrize("tool", ["tcpretrans", "tcpnagle", "netsize", "tcpsynbl"])
def test_other_tools_work_or_say_what_they_lack(place: Path, tool: str) -> None:
    with running_with(place, (*BOTH, "dac_read_search"), tool) as run:
        pass
    summary = run.summary
    assert summary["complete"] is (tool != "tcpsynbl")  # which looks into other namespaces first
    if tool == "tcpsynbl":
        assert summary["lost"]["not_covered"] == 1
        assert any("CAP_SYS_ADMIN, CAP_SYS_PTRACE" in note for note in summary["notes"])
    assert any("overhead is not measured" in note for note in summary["notes"])


def test_optional_probe_that_is_forbidden_makes_the_run_incomplete(place: Path) -> None:
    words = ("tcplife", "--fail-on-loss")
    with running_with(place, BOTH, *words, returncode=3) as run:
        pass
    lost = [one["name"] for one in run.summary["probes"] if one["kind"] is None]
    assert "accept4" in lost
    notes = [note for note in run.summary["notes"] if "CAP_DAC_READ_SEARCH to read" in note]
    assert run.summary["lost"]["not_covered"] == len(notes) > 0
    assert run.summary["complete"] is False


# --- name lookups --------------------------------------------------------------------------------


@pytest.fixture
def private_libc(place: Path) -> Path:
    """A libc that only its user may read, in a directory that only they may enter."""
    private = place / "private"
    private.mkdir(mode=0o700)
    ours = next(
        line.split()[-1]
        for line in Path("/proc/self/maps").read_text().splitlines()
        if "/libc.so.6" in line or "/libc-2." in line
    )
    shutil.copy(ours, private / "libc.so.6")
    (private / "libc.so.6").chmod(0o600)
    # A program file that was never seen before, so that it is looked at when it starts.
    shutil.copy(os.path.realpath("/usr/bin/python3"), private / "python")
    (private / "python").chmod(0o700)
    for path in (private, *private.iterdir()):
        os.chown(path, 1234, 1234)
    return private


LOOK_UP = "import socket, sys; sys.stdin.readline(); socket.getaddrinfo('localhost', 80)"


@contextlib.contextmanager
def private_program(libc: Path) -> Iterator[subprocess.Popen[str]]:
    """A program of another user that looks a name up in its own libc when it gets a line."""
    user = ["setpriv", "--reuid=1234", "--regid=1234", "--clear-groups"]
    surroundings = ["env", f"LD_LIBRARY_PATH={libc}", "PYTHONHOME=/usr"]
    line = [*user, *surroundings, str(libc / "python"), "-S", "-c", LOOK_UP]
    with subprocess.Popen(line, stdin=subprocess.PIPE, text=True, cwd="/") as process:
        maps = Path(f"/proc/{process.pid}/maps")
        wait_until(lambda: f"{libc}/libc.so.6" in maps.read_text(), what="its libc")
        try:
            yield process
        finally:
            harness.kill(process)


def test_private_library_is_probed_after_giving_up_what_is_not_needed(
    netbpf: Any, private_libc: Path
) -> None:
    with netbpf("gethostlatency") as run, private_program(private_libc) as program:
        time.sleep(3)  # a program that is new is looked at again after 2 s at the latest
        program.communicate("\n", timeout=harness.TIMEOUT)
        run.wait_for(lambda events: program.pid in {event["pid"] for event in events})
    assert program.pid not in {gap["pid"] for gap in run.summary["coverage"]["uncovered"]}


@pytest.mark.parametrize("readable", [False, True])
def test_program_that_may_not_be_read_makes_the_run_incomplete(
    place: Path, private_libc: Path, readable: bool
) -> None:
    given = ("sys_admin", "sys_ptrace", *(["dac_read_search"] if readable else []))
    directory = place / "run"
    directory.mkdir()
    with (
        private_program(private_libc) as program,
        running_with(directory, given, "gethostlatency") as run,
    ):
        pass
    uncovered = {gap["pid"] for gap in run.summary["coverage"]["uncovered"]}
    assert (program.pid in uncovered) is not readable
    assert (run.summary["lost"]["not_covered"] > 0) is not readable
    assert run.summary["complete"] is readable


# --- the doctor ----------------------------------------------------------------------------------


def test_doctor_says_what_each_tool_lacks() -> None:
    done = run_with(BOTH, "doctor", "--json")
    assert done.returncode == 77, done.stderr
    tools = {tool["name"]: tool for tool in json.loads(done.stdout)["tools"]}
    needed = {
        name: {one["it_takes"].split()[0] for one in tool["privileges"] if one["without"] is None}
        for name, tool in tools.items()
    }
    assert "CAP_SYS_PTRACE" in needed["gethostlatency"]
    assert needed["sockstat"] == {"CAP_DAC_READ_SEARCH"} and tools["sockstat"]["usable"] is False
    assert needed["skbdrop"] == {"CAP_SYSLOG"}
    assert needed["tcplife"] == set() and tools["tcplife"]["usable"] is True
    text = run_with(BOTH, "doctor").stdout
    assert "needs CAP_SYS_PTRACE to inspect processes of other users" in text


def test_doctor_of_root_misses_nothing() -> None:
    found = json.loads(harness.netbpf_once("doctor", "--json").stdout)
    ours = {one["it_takes"].split()[0] for tool in found["tools"] for one in tool["privileges"]}
    assert not ours & set(capabilities())
