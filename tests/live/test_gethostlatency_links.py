"""However gethostlatency's probes are attached, by links of many places or by events, it sees all.

A kernel that has no such links, or refuses them, is made of this one by a filter of system calls.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import re
import shutil
import struct
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import harness
import pytest
import resolver
import test_privileges
import topology
from conftest import Netbpf
from harness import SLOW, Json, Run, wait_until

from netbpf.binaries.binary import identity_of, read_libc
from netbpf.kernel.inspect import LiveKernel
from netbpf.system.syscalls import SYS_BPF, SYS_PERF_EVENT_OPEN, syscall

pytestmark = pytest.mark.alone

PROGRAMS = Path(__file__).parent / "programs"
QUESTIONS = [
    (function, host)
    for function in ("getaddrinfo", "gethostbyname", "gethostbyname2_r")
    for host in ("one.test", "none.test")
]


def kernel_has_links() -> bool:
    """Whether there are uprobe_multi links here (6.6): by the name, which the tool does not ask."""
    return LiveKernel().enumerator("bpf_attach_type", "BPF_TRACE_UPROBE_MULTI") is not None


def refuse_links() -> None:
    """Let BPF_LINK_CREATE fail with EINVAL in this process from now on, as before Linux 6.6."""
    allow, refuse = 0x7FFF0000, 0x00050000 | errno.EINVAL  # SECCOMP_RET_ALLOW, _ERRNO
    load, equal, result = 0x20, 0x15, 0x06  # struct sock_filter: code, jumps if so and if not, k
    steps = [
        (load, 0, 0, 0), (equal, 0, 3, SYS_BPF),  # struct seccomp_data: the call
        (load, 0, 0, 16), (equal, 0, 1, 28), (result, 0, 0, refuse),  # its first argument
        (result, 0, 0, allow),
    ]  # fmt: skip
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in steps))
    program = struct.pack("@HP", len(steps), ctypes.addressof(code))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(22, ctypes.c_ulong(2), ctypes.c_char_p(program), 0, 0):  # PR_SET_SECCOMP
        raise OSError(ctypes.get_errno(), "no filter of system calls")


def held(run: Run) -> Counter[str]:
    """What holds the probes of a run: links of many places, and events that are no tracepoint's."""
    place = Path(f"/proc/{run.process.pid}")
    kinds: Counter[str] = Counter()
    for file in (place / "fdinfo").iterdir():
        kinds["links"] += "link_type:\tuprobe_multi" in file.read_text()
        kinds["events"] += "[perf_event]" in os.readlink(place / "fd" / file.name)
    return kinds


def of_tracepoints(run: Run) -> int:
    return sum(len(one["targets"]) for one in run.summary["probes"] if one["kind"] == "tp")


def without_time(event: Json) -> tuple[tuple[str, str], ...]:
    return tuple((k, repr(v)) for k, v in sorted(event.items()) if k not in ("time", "latency_us"))


@pytest.fixture(scope="module")
def namespace() -> Iterator[resolver.Namespace]:
    with resolver.namespace() as namespace:
        yield namespace


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not shutil.which("gcc"):
        pytest.skip("no gcc here: apt install gcc")
    path = tmp_path_factory.mktemp("links") / "asks-by-links"
    topology.must("gcc", "-O2", "-o", path, PROGRAMS / "resolve.c", timeout=90 * SLOW)
    return path


def ask(namespace: resolver.Namespace, program: Path, **more: Any) -> None:
    for words in QUESTIONS:
        process: subprocess.Popen[str] = namespace.popen([str(program), *words], **more)
        process.communicate(timeout=30 * SLOW)


# --- by links -------------------------------------------------------------------------------------


def test_file_has_at_most_one_link_for_each_program(netbpf: Netbpf) -> None:
    with netbpf("gethostlatency") as run:
        found = held(run)
    files = run.summary["coverage"]["libcs"] + run.summary["coverage"]["programs"]
    programs = [one for one in run.summary["probes"] if one["kind"] in ("uprobe", "uretprobe")]
    assert files
    if kernel_has_links():
        assert 0 < found["links"] <= files * len(programs)
        assert found["events"] == of_tracepoints(run)
    else:
        assert found["links"] == 0 and found["events"] > of_tracepoints(run)


def test_links_and_events_see_the_same(
    netbpf: Netbpf, namespace: resolver.Namespace, program: Path
) -> None:
    words = ("gethostlatency", "--comm", program.name)
    with (
        netbpf(*words) as by_links,
        netbpf(*words, preexec_fn=refuse_links) as by_events,
    ):
        ways = held(by_links), held(by_events)
        ask(namespace, program)
        for run in (by_links, by_events):
            run.wait_for(len(QUESTIONS))
    assert (ways[0]["links"] > 0) is kernel_has_links()
    assert ways[1]["links"] == 0 and ways[1]["events"] > of_tracepoints(by_events)
    first, second = (Counter(map(without_time, run.events)) for run in (by_links, by_events))
    assert first == second and sum(first.values()) == len(QUESTIONS)
    for run in (by_links, by_events):
        assert run.summary["complete"], run.summary["lost"]
        assert "cannot be probed" not in run.stderr


def test_probes_are_gone_soon_after_the_end_without_links(netbpf: Netbpf) -> None:
    before = harness.bpf_programs()
    with netbpf("gethostlatency", preexec_fn=refuse_links):
        assert harness.bpf_programs() - before
    wait_until(lambda: not harness.bpf_programs() - before, 60 * SLOW, "detached probes")


def test_links_take_no_more_than_their_programs(
    namespace: resolver.Namespace, program: Path
) -> None:
    if not kernel_has_links():
        pytest.skip("this kernel has no uprobe_multi links: events may take CAP_SYS_ADMIN")
    given = ("bpf", "perfmon", "sys_ptrace", "dac_read_search")
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        place.chmod(0o755)
        with test_privileges.running_with(
            place, given, "gethostlatency", "--comm", program.name
        ) as run:
            assert held(run)["links"] > 0
            ask(namespace, program)
            run.wait_for(len(QUESTIONS))
        assert "cannot be probed" not in run.stderr
        assert "CAP_SYS_ADMIN" not in run.summary["privileges"]["helper"]


# --- one place is refused -------------------------------------------------------------------------


def probe_with_semaphore(path: Path, offset: int) -> int:
    """Probe a place as some versions of bcc do: with a semaphore, so that others are refused."""
    kind = int(Path("/sys/bus/event_source/devices/uprobe/type").read_text())
    name = ctypes.create_string_buffer(os.fsencode(path))
    semaphore = 8 << 32  # REF_CTR_OFFSET_SHIFT: its offset in the file
    # struct perf_event_attr up to config2.
    words = struct.pack(
        "=IIQQQQQIIQQ", kind, 72, semaphore, 1, 0, 0, 0, 1, 0, ctypes.addressof(name), offset
    )
    event = syscall(SYS_PERF_EVENT_OPEN, ctypes.create_string_buffer(words), -1, 0, -1, 8)
    fcntl.ioctl(event, 0x2400, 0)  # PERF_EVENT_IOC_ENABLE
    return event


@pytest.mark.parametrize("links", [True, False], ids=["links", "events"])
def test_place_that_is_refused_is_named_and_the_others_are_probed(
    netbpf: Netbpf, namespace: resolver.Namespace, program: Path, tmp_path: Path, links: bool
) -> None:
    ours = Path("/proc/self/maps").read_text()
    source = re.search(r"(/\S*/libc(?:\.so\.6|-2\.\d+\.so))$", ours, re.MULTILINE)
    assert source
    libc = tmp_path / "libc.so.6"
    shutil.copy(source[1], libc)
    identity = identity_of(str(libc))
    assert identity
    binary = read_libc(identity, str(libc), "glibc").binary
    assert binary
    spare = binary.functions["gethostbyaddr_r"]  # no question makes use of it
    event = probe_with_semaphore(libc, (*spare.returns, spare.offset)[0])
    more = {} if links else {"preexec_fn": refuse_links}
    try:
        waits = [str(program), "--wait", "getaddrinfo", "one.test"]
        surroundings = {**os.environ, "LD_LIBRARY_PATH": str(tmp_path)}
        process = namespace.popen(waits, env=surroundings)
        assert process.stdout and process.stdout.readline() == "ready\n"
        words = ("gethostlatency", "-v", "--comm", program.name)
        with netbpf(*words, **more) as run:
            process.communicate("\n", timeout=30 * SLOW)
            ask(namespace, program, env=surroundings)
            run.wait_for(1 + len(QUESTIONS))
            found = held(run)
    finally:
        os.close(event)
    assert f"{libc} cannot be probed at gethostbyaddr_r" in run.stderr
    asked = [("getaddrinfo", "one.test"), *QUESTIONS]
    assert [(event["func"], event["host"]) for event in run.events] == asked
    assert (found["links"] > 0) is (links and kernel_has_links())
    assert run.summary["lost"]["not_covered"] > 0 and not run.summary["complete"]
