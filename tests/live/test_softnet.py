"""softnet counts what ftrace recorded, what softnet_stat counted, and the packets of this test.

Other traffic of the machine goes through the same CPUs. So numbers of a CPU are compared with two
windows of the second source: an inner one, within the tool's, and an outer one, around it.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import socket
import struct
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import hidden
import packets
import pytest
import traffic
from alternatives import Case, Stage
from compared import compares
from harness import Json, Run, wait_until
from instructions import instruction
from topology import Host

from netbpf.bpf.loader import Entry, load
from netbpf.bpf.maps import possible_cpus
from netbpf.bpf.object import BpfObject
from netbpf.declare.probe_kinds import KINDS
from netbpf.system.syscalls import detached_mount

NUMBER = 211
WHOLE = "600"  # an INTERVAL that no test reaches: the rows are of the whole run
SO_BUSY_POLL, SO_ATTACH_BPF, SO_INCOMING_NAPI_ID = 46, 50, 56
VECTORS = {2: "NET_TX", 3: "NET_RX"}
OFTEN_LATE = 20  # us that a program may run later than ftrace, for the same event
_numbers = itertools.count()


# --- what ftrace records --------------------------------------------------------------------------


class Poll(NamedTuple):
    time: float
    cpu: int
    pid: int
    dev: str
    work: int
    budget: int
    softirq: str


class SoftirqRun(NamedTuple):
    time: float  # of its end, in seconds
    cpu: int
    ksoftirqd: bool
    softirq: str
    run: float  # us
    delay: float | None


class Recorded(NamedTuple):
    """What ftrace recorded in a window."""

    runs: list[SoftirqRun]
    polls: list[Poll]

    def of(self, cpu: int, softirq: str = "NET_RX") -> Recorded:
        return Recorded(
            [run for run in self.runs if (run.cpu, run.softirq) == (cpu, softirq)],
            [poll for poll in self.polls if (poll.cpu, poll.softirq) == (cpu, softirq)],
        )

    def device(self, dev: str) -> list[Poll]:
        return [poll for poll in self.polls if poll.dev == dev]

    def counts(self) -> dict[str, int]:
        return {
            "runs": len(self.runs),
            "ksoftirqd": sum(run.ksoftirqd for run in self.runs),
            "polls": len(self.polls),
            "packets": sum(poll.work for poll in self.polls),
            "budget": sum(poll.budget for poll in self.polls),
            "full": sum(poll.work >= poll.budget > 0 for poll in self.polls),
        }


# "comm-pid (tgid) [cpu] flags time: event: fields"; the name is lost if there are many processes.
_LINE = re.compile(r"\s*.*-(\d+)\s+(?:\(\s*([\d-]+)\) )?\[(\d+)\]\s+\S+\s+([\d.]+): (\w+): (.*)")
_POLL = re.compile(r"napi poll on napi struct \S+ for device (\S+) work (-?\d+) budget (\d+)")


def threads_of_init() -> set[int]:
    """Return the threads in whose time this kernel runs no BPF program: see hidden.py."""
    return set(map(int, os.listdir("/proc/1/task"))) if hidden.hides_init() else set()


def processes(prefix: str) -> set[int]:
    """Return the processes whose names begin so."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/comm"):
        with contextlib.suppress(OSError):
            if path.read_text().startswith(prefix):
                found.add(int(path.parent.name))
    return found


class Ftrace:
    """ftrace's record of the softirqs of the network, in a trace instance of its own."""

    def __init__(self, cpus: Sequence[int]) -> None:
        self._mount = detached_mount("tracefs")
        name = f"netbpf-softnet-{os.getpid()}-{next(_numbers)}"
        self._instance = Path(self._mount) / "instances" / name
        self._instance.mkdir()
        self._cpus = cpus
        self._hidden = threads_of_init()
        self._ksoftirqd = processes("ksoftirqd/")
        self._napi: set[int] = set()
        self.hidden_runs: Counter[int] = Counter()  # of NET_RX, by CPU
        self.hidden_polls: list[Poll] = []
        self._write("buffer_size_kb", "24576")
        self._write("trace_clock", "mono")
        self._write("options/record-tgid", "1")
        self._write("tracing_cpumask", f"{sum(1 << cpu for cpu in cpus):x}")
        for name in ("raise", "entry", "exit"):
            self._write(f"events/irq/softirq_{name}/filter", "vec == 2 || vec == 3")
            self._write(f"events/irq/softirq_{name}/enable", "1")
        self._write("events/napi/napi_poll/enable", "1")

    def mark(self) -> float:
        """Return the time, in seconds of ftrace's clock."""
        self._hidden |= threads_of_init()
        return time.clock_gettime(time.CLOCK_MONOTONIC)

    def read(self, begin: float, end: float) -> tuple[Recorded, Recorded]:
        """Return what was recorded between two times, and all: without what is hidden from BPF."""
        self._write("tracing_on", "0")
        for cpu in self._cpus:
            stats = (self._instance / f"per_cpu/cpu{cpu}/stats").read_text()
            assert "\noverrun: 0\n" in stats, "ftrace's buffer is too small for this traffic"
        self._hidden |= threads_of_init()
        self._napi = processes("napi/")
        every = self._parse((self._instance / "trace").read_text().splitlines())
        inner = Recorded(
            [run for run in every.runs if begin < run.time - (run.run + (run.delay or 0)) / 1e6
             and run.time < end],
            [poll for poll in every.polls if begin < poll.time < end],
        )  # fmt: skip
        return inner, every

    def _parse(self, lines: list[str]) -> Recorded:
        raised: dict[tuple[int, int], float] = {}
        entered: dict[tuple[int, int], tuple[float, float | None]] = {}
        found = Recorded([], [])
        for line in lines:
            match = _LINE.match(line)
            if not match:
                continue
            pid, cpu, when = int(match[1]), int(match[3]), float(match[4])
            hidden_now = pid in self._hidden or (bool(self._hidden) and match[2] == "1")
            if match[5] == "napi_poll":
                poll = _POLL.match(match[6])
                assert poll, line
                softirq = "NET_RX" if (cpu, 3) in entered else "busy-poll"
                softirq = "thread" if pid in self._napi else softirq
                done = Poll(when, cpu, pid, poll[1], int(poll[2]), int(poll[3]), softirq)
                (self.hidden_polls if hidden_now else found.polls).append(done)
                continue
            if hidden_now:
                self.hidden_runs[cpu] += match[5] == "softirq_exit" and "vec=3" in match[6]
                continue
            vector = int(match[6].partition("vec=")[2].split()[0])
            at = (cpu, vector)
            if match[5] == "softirq_raise":
                raised.setdefault(at, when)
            elif match[5] == "softirq_entry":
                since = raised.pop(at, None)
                entered[at] = (when, None if since is None else 1e6 * (when - since))
            elif at in entered:
                began, delay = entered.pop(at)
                run = 1e6 * (when - began)
                thread = pid in self._ksoftirqd
                found.runs.append(SoftirqRun(when, cpu, thread, VECTORS[vector], run, delay))
        return found

    def close(self) -> None:
        self._write("events/enable", "0")
        self._instance.rmdir()
        os.close(int(self._mount.rpartition("/")[2]))

    def _write(self, name: str, text: str) -> None:
        (self._instance / name).write_text(text)


@contextlib.contextmanager
def ftrace(cpus: Sequence[int] = range(possible_cpus())) -> Iterator[Ftrace]:
    trace = Ftrace(cpus)
    try:
        yield trace
    finally:
        trace.close()


# --- what the kernel counts -----------------------------------------------------------------------

SOFTNET = {"processed": 0, "dropped": 1, "squeezed": 2, "rps": 9, "flow_limited": 10}


def softnet_stat() -> dict[int, dict[str, int]]:
    """Return {CPU: counts} of /proc/net/softnet_stat; kernels before 5.10 have all CPUs online."""
    lines = [line.split() for line in Path("/proc/net/softnet_stat").read_text().splitlines()]
    return {
        int(line[12], 16) if len(line) > 12 else cpu: {
            name: int(line[index], 16) for name, index in SOFTNET.items()
        }
        for cpu, line in enumerate(lines)
    }


def proc_softirqs(cpu: int) -> dict[str, int]:
    """Return how often each softirq of the network ran on a CPU."""
    head, *lines = Path("/proc/softirqs").read_text().splitlines()
    column = head.split().index(f"CPU{cpu}") + 1
    rows = {line.split()[0].rstrip(":"): int(line.split()[column]) for line in lines}
    return {softirq: rows[softirq] for softirq in VECTORS.values()}


def grown(before: dict[str, int], after: dict[str, int]) -> dict[str, int]:
    return {name: after[name] - before[name] for name in after}


# --- traffic --------------------------------------------------------------------------------------

_ROUNDS = 100_000  # as many as the verifier follows
_SLOW_FILTER = b"".join((
    instruction(0xB7, 6, imm=_ROUNDS),  # r6 = _ROUNDS
    instruction(0x07, 6, imm=-1),  # again: r6 -= 1
    instruction(0x55, 6, off=-2),  # if r6 is not 0: again
    instruction(0xB7, 0, imm=-1),  # r0 = all bytes
    instruction(0x95),
))  # fmt: skip
LEAST = 20  # us of the filter: its rounds on a CPU of 5 GHz that takes one in a cycle


class Receiver:
    """A socket whose filter takes its time in the softirq that receives a packet."""

    def __init__(self, host: Host) -> None:
        kind = KINDS["tp"]._replace(program_type=1)  # BPF_PROG_TYPE_SOCKET_FILTER
        image = BpfObject((), {"slow": _SLOW_FILTER})
        entry = Entry("slow", "slow", "slow", kind, "")
        self._filter = load(image, [entry], [], lambda _: 0).programs["slow"]
        self._receiver = host.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._receiver.bind((host.ipv4, 0))
        self._receiver.setsockopt(socket.SOL_SOCKET, SO_ATTACH_BPF, self._filter)
        self._receiver.settimeout(10)
        self.sender = host.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.sender.connect(self._receiver.getsockname())

    def send(self, number: int) -> None:
        """Send packets and wait for each."""
        for _ in range(number):
            self.sender.send(b"x")
            self._receiver.recv(10)

    def taken(self) -> float:
        """Return the time in us that the filter ran while a tool counted it."""
        info = Path(f"/proc/self/fdinfo/{self._filter}").read_text()
        return int(re.findall(r"run_time_ns:\s*(\d+)", info)[0]) / 1000

    def close(self) -> None:
        self._receiver.close()
        self.sender.close()
        os.close(self._filter)


@pytest.fixture
def slow(one_host: Host) -> Iterator[Receiver]:
    with contextlib.closing(Receiver(one_host)) as receiver:
        yield receiver


@contextlib.contextmanager
def on_cpu(cpu: int) -> Iterator[None]:
    """Send from one CPU, on which the packets are received as well."""
    everywhere = os.sched_getaffinity(0)
    os.sched_setaffinity(0, [cpu])
    try:
        yield
    finally:
        os.sched_setaffinity(0, everywhere)


@contextlib.contextmanager
def small_budget() -> Iterator[None]:
    """Let each run of NET_RX end with work left: after the first poll its budget is used up."""
    path = Path("/proc/sys/net/core/netdev_budget")
    usual = path.read_text()
    path.write_text("1")
    try:
        yield
    finally:
        path.write_text(usual)


def veth_has_napi() -> bool:
    """Whether veth polls without an XDP program: since 5.13 (d3256efd8e8b)."""
    return " veth_set_features" in Path("/proc/kallsyms").read_text()


@pytest.fixture
def napi(two_hosts: tuple[Host, Host]) -> Iterator[tuple[Host, Host]]:
    """Two hosts, of which the right one receives by NAPI what the left one sends."""
    if not veth_has_napi():
        pytest.skip("needs a kernel whose veth has NAPI for GRO: 5.13")
    left, right = two_hosts
    with packets.offload(left, "tso", False), packets.offload(right, "gro", True):
        yield left, right


def in_sysfs(host: Host, script: str) -> str:
    """Run a script in the class net of the host's own sysfs."""
    there = f"mount -t sysfs none /sys && cd /sys/class/net && {script}"
    return host.run("unshare", "-m", "sh", "-c", there)


# --- rows -----------------------------------------------------------------------------------------


def row_of(run: Run, cpu: int, softirq: str = "NET_RX") -> Json:
    (found,) = [r for r in run.rows if (r.get("cpu"), r.get("softirq")) == (cpu, softirq)]
    return found


def devices_of(run: Run, dev: str | None) -> list[Json]:
    return [row for row in run.rows if "dev" in row and row["dev"] == dev]


def bounds(inner: Sequence[float], outer: Sequence[float], percent: int) -> tuple[float, float]:
    """Return between which values a percentile is, of values between these two sets."""
    above = len(outer) * (100 - percent) / 100
    least = max([v for i, v in enumerate(sorted(inner, reverse=True), 1) if i > above], default=0.0)
    above = len(inner) * (100 - percent) / 100
    ranked = sorted(outer, reverse=True)
    most = next((v for i, v in enumerate(ranked) if i + 1 >= above), 0.0)
    return least, most


def check_percentile(
    value: int, inner: Sequence[float], outer: Sequence[float], percent: int, width: float
) -> None:
    """Check a percentile that is the upper bound of a slot, `width` times its lower bound."""
    least, most = bounds(inner, outer, percent)
    assert 0.75 * least - OFTEN_LATE <= value <= width * (1.25 * most + OFTEN_LATE)


def delays(record: Recorded) -> list[float]:
    return [run.delay for run in record.runs if run.delay is not None]


@compares(
    "softnet", "cpu", "softirq", "runs", "run_us", "run_p99_us", "delay_p99_us", "polls",
    "packets", "full", "budget", "ksoftirqd", shape="rows",
)  # fmt: skip
@pytest.mark.alone
def test_rows_are_what_ftrace_recorded(netbpf: Any, slow: Receiver) -> None:
    cpu = max(os.sched_getaffinity(0))
    with ftrace([cpu]) as trace, on_cpu(cpu):
        outer_irqs = proc_softirqs(cpu)
        with netbpf("softnet", WHOLE, "--cpu", cpu) as run:
            begin, irqs = trace.mark(), proc_softirqs(cpu)
            slow.send(NUMBER)
            irqs = grown(irqs, proc_softirqs(cpu))
            end = trace.mark()
            taken = slow.taken()
        outer_irqs = grown(outer_irqs, proc_softirqs(cpu))
        inner, outer = (record.of(cpu) for record in trace.read(begin, end))
    assert {row["cpu"] for row in run.rows} == {cpu}
    row = row_of(run, cpu)
    least, most = inner.counts(), outer.counts()
    for name in least:
        assert least[name] <= row[name] <= most[name], name
    assert least["packets"] >= NUMBER
    assert irqs["NET_RX"] - trace.hidden_runs[cpu] <= row["runs"]
    assert row["runs"] <= outer_irqs["NET_RX"]
    # The filter runs in the softirq: the kernel's own measurement of it is the least.
    assert taken > NUMBER * LEAST
    times = [[run.run for run in record.runs] for record in (inner, outer)]
    assert max(taken, 0.75 * sum(times[0])) <= row["run_us"]
    assert row["run_us"] <= 1.25 * sum(times[1]) + 2 * len(times[1])
    assert row["run_p99_us"] >= LEAST
    check_percentile(row["run_p99_us"], *times, 99, 1.25)
    check_percentile(row["delay_p99_us"], delays(inner), delays(outer), 99, 1.25)
    assert not any(run.summary["lost"].values())


@compares("softnet", "processed", "squeezed", "dropped", "rps", "flow_limited", shape="rows")
@pytest.mark.alone
@pytest.mark.skipif(possible_cpus() < 2, reason="needs two CPUs: one sends, the other receives")
def test_full_queue_of_a_cpu_is_in_its_row_as_in_softnet_stat(
    netbpf: Any, slow: Receiver, one_host: Host
) -> None:
    in_sysfs(one_host, "echo 2 > lo/queues/rx-0/rps_cpus")
    try:
        with ftrace([1]) as trace, on_cpu(0), small_budget():
            before = softnet_stat()[1]
            with netbpf("softnet", WHOLE) as run:
                begin, inner = trace.mark(), softnet_stat()[1]

                def overflows() -> bool:
                    # The queue has room for net.core.netdev_max_backlog packets, usually 1000.
                    for _ in range(1300):
                        slow.sender.send(b"x")
                    rise = grown(inner, softnet_stat()[1])
                    return all(rise[name] for name in ("dropped", "squeezed", "rps"))

                wait_until(overflows, what="dropped packets")
                inner = grown(inner, softnet_stat()[1])
                end = trace.mark()
            outer = grown(before, softnet_stat()[1])
            recorded = [record.of(1).counts() for record in trace.read(begin, end)]
    finally:
        in_sysfs(one_host, "echo 0 > lo/queues/rx-0/rps_cpus")
    row = row_of(run, 1)
    for name in SOFTNET:
        assert inner[name] <= row[name] <= outer[name], name
    assert inner["dropped"] > 0 and inner["squeezed"] > 0 and inner["rps"] > 0
    # What waited in the queue is polled in batches.
    assert 0 < recorded[0]["full"] <= row["full"] <= recorded[1]["full"]
    for name in ("dropped", "processed"):
        assert run.summary["counters"][f"Softnet.{name}"] >= inner[name]
    assert run.summary["counters"]["Softnet.time_squeeze"] >= inner["squeezed"]


@compares("softnet", "dev", "polls", "packets", "full", "napi_id", "netns", shape="--devices")
def test_polls_of_a_device_are_the_packets_that_it_received(
    netbpf: Any, napi: tuple[Host, Host]
) -> None:
    left, right = napi
    with traffic.peers() as start, ftrace() as trace:
        client, server = start("nb-client", left), start("nb-server", right)
        server.listen("ipv4")
        before = right.device_counters()["rx_packets"]
        with netbpf("softnet", WHOLE, "--devices") as run, packets.datagrams(left, right) as pair:
            pair.send([10] * 23)
            ident = pair._receiver.getsockopt(socket.SOL_SOCKET, SO_INCOMING_NAPI_ID)
            session = traffic.connect(client, server)
            session.transfer(up=4_000_037, down=1234)
            session.end()
        received = right.device_counters()["rx_packets"] - before
        polls = trace.read(0, 0)[1].device(right.device)
    (row,) = devices_of(run, right.device)
    unseen = sum(poll.work for poll in trace.hidden_polls if poll.dev == right.device)
    assert row["packets"] == received - unseen > 1000
    assert row["packets"] == sum(poll.work for poll in polls)
    assert row["polls"] == len(polls)
    assert row["full"] == sum(poll.work == poll.budget for poll in polls)
    assert (row["netns"], row["napi_id"]) == (right.inode, ident) and ident > 0
    # The left one has no NAPI: what it receives goes through the queue of the CPU.
    assert devices_of(run, left.device) == []


def test_packets_over_loopback_are_in_the_queue_of_the_cpu(netbpf: Any, one_host: Host) -> None:
    cpu = min(os.sched_getaffinity(0))
    before = softnet_stat()
    with on_cpu(cpu), packets.datagrams(one_host, one_host) as pair:
        with netbpf("softnet", WHOLE, "--devices") as run:
            pair.send([10] * 1009)
        with netbpf("softnet", WHOLE, "--cpu", cpu) as alone:
            pair.send([10] * 1009)
    most = sum(stat["processed"] - before[cpu]["processed"] for cpu, stat in softnet_stat().items())
    (row,) = devices_of(run, None)
    assert (row["netns"], row["napi_id"]) == (None, None)
    assert 1009 <= row["packets"] <= most
    assert row_of(run, cpu)["packets"] >= 1009
    assert row_of(alone, cpu)["packets"] >= 1009
    assert row_of(alone, cpu)["processed"] >= 1009


@pytest.mark.skipif(possible_cpus() < 2, reason="needs two CPUs")
def test_cpu_filter_leaves_out_what_other_cpus_do(netbpf: Any, napi: tuple[Host, Host]) -> None:
    for cpus, number in (("1", 0), ("0", 23), ("0-1", 23), ("1,0", 23)):
        with netbpf("softnet", WHOLE, "--devices", "--cpu", cpus) as run, on_cpu(0):
            with packets.datagrams(*napi) as pair:
                pair.send([10] * 23)
        found = devices_of(run, napi[1].device)
        assert sum(row["packets"] for row in found) == number, cpus
        shown = {row["cpu"] for row in run.rows if "cpu" in row}
        assert shown <= set(map(int, re.findall(r"\d", cpus)))


# --- outside of softirqs --------------------------------------------------------------------------


def test_polls_of_kernel_threads_have_rows_of_their_own(
    netbpf: Any, napi: tuple[Host, Host]
) -> None:
    left, right = napi
    if "threaded" not in in_sysfs(right, f"ls {right.device}").split():
        pytest.skip("needs a kernel with threaded NAPI: 5.12")
    in_sysfs(right, f"echo 1 > {right.device}/threaded")
    try:
        with ftrace() as trace, packets.datagrams(left, right) as pair:
            with netbpf("softnet", WHOLE, "--devices") as run:
                pair.send([10] * 23)
            polls = trace.read(0, 0)[1].device(right.device)
    finally:
        in_sysfs(right, f"echo 0 > {right.device}/threaded")
    (row,) = devices_of(run, right.device)
    assert row["packets"] == 23 and {poll.softirq for poll in polls} == {"thread"}
    threads = [row for row in run.rows if row.get("softirq") == "thread"]
    assert sum(row["packets"] for row in threads) >= 23
    assert {row["cpu"] for row in threads} >= {poll.cpu for poll in polls}
    assert {(row["runs"], row["run_us"], row["ksoftirqd"]) for row in threads} == {(None,) * 3}
    assert {row["squeezed"] for row in threads} == {None}


def test_polls_of_programs_have_rows_of_their_own(netbpf: Any, napi: tuple[Host, Host]) -> None:
    left, right = napi
    with ftrace() as trace, packets.datagrams(left, right) as pair:
        receiver = pair._receiver
        receiver.setsockopt(socket.SOL_SOCKET, SO_BUSY_POLL, 2000)  # us
        with netbpf("softnet", WHOLE, "--devices") as run:
            pair.send([10] * 23)
            receiver.setblocking(True)
            receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 0, 50000))
            with contextlib.suppress(BlockingIOError):
                receiver.recv(10)  # nothing comes: it polls until the time is over
        polls = trace.read(0, 0)[1].device(right.device)
    own = [poll for poll in polls if poll.softirq == "busy-poll"]
    if not own:
        pytest.skip("needs a kernel that polls for programs: CONFIG_NET_RX_BUSY_POLL")
    assert {poll.pid for poll in own} == {os.getpid()}
    busy = [row for row in run.rows if row.get("softirq") == "busy-poll"]
    assert sum(row["polls"] for row in busy) >= len(own)
    assert {row["cpu"] for row in busy} >= {poll.cpu for poll in own}
    (row,) = devices_of(run, right.device)
    assert row["polls"] == len(polls) and row["packets"] == 23


# --- distributions --------------------------------------------------------------------------------


@compares("softnet", "what", "softirq", "buckets", "count", "sum", "percentiles",
          shape="histogram")  # fmt: skip
@pytest.mark.alone
def test_distributions_are_what_ftrace_recorded(netbpf: Any, slow: Receiver) -> None:
    cpu = max(os.sched_getaffinity(0))
    with ftrace([cpu]) as trace, on_cpu(cpu):
        with netbpf("softnet", WHOLE, "--histogram", "--cpu", cpu) as run:
            begin = trace.mark()
            slow.send(NUMBER)
            end = trace.mark()
        records = [record.of(cpu) for record in trace.read(begin, end)]
    values = {"run": [[one.run for one in record.runs] for record in records],
              "delay": [delays(record) for record in records]}  # fmt: skip
    for what, (inner, outer) in values.items():
        (found,) = [h for h in run.histograms if h["key"] == {"what": what, "softirq": "NET_RX"}]
        assert NUMBER <= len(inner) <= found["count"] <= len(outer)
        assert found["count"] == sum(bucket["count"] for bucket in found["buckets"])
        assert 0.75 * sum(inner) - 2 * len(inner) <= found["sum"]
        assert found["sum"] <= 1.25 * sum(outer) + 2 * len(outer)
        for bucket in found["buckets"]:
            at = bucket["low"]
            counted = sum(b["count"] for b in found["buckets"] if b["low"] >= at)
            assert sum(0.75 * v - OFTEN_LATE >= at for v in inner) <= counted
            assert counted <= sum(1.25 * v + OFTEN_LATE >= at for v in outer)
        for percent in (50, 90, 99):
            check_percentile(found["percentiles"][f"p{percent}"], inner, outer, percent, 2)
    assert row_of(run, cpu)["runs"] >= NUMBER  # the table is shown as well


# --- intervals, losses ----------------------------------------------------------------------------


def test_intervals_add_up_to_the_whole(netbpf: Any, napi: tuple[Host, Host]) -> None:
    device = napi[1].device
    with netbpf("softnet", "0.2", "--devices") as run, packets.datagrams(*napi) as pair:
        for wanted in (1, 2, 3):
            pair.send([10] * 23)
            wait_until(lambda: len(devices_of(run, device)) >= wanted, what="rows")  # noqa: B023
    assert sum(row["packets"] for row in devices_of(run, device)) == 3 * 23


def test_a_table_comes_every_second(netbpf: Any, one_host: Host) -> None:
    with netbpf("softnet") as run, packets.datagrams(one_host, one_host) as pair:

        def sent() -> int:
            pair.send([10])
            return len({row["time"] for row in run.rows})

        wait_until(lambda: sent() >= 2, what="two tables")
    assert run.summary["seconds"] >= 2


def test_instances_without_room_are_lost_and_counted(
    netbpf: Any, napi: tuple[Host, Host], one_host: Host
) -> None:
    words = ("softnet", WHOLE, "--devices", "--map-entries", 1, "--fail-on-loss")
    with netbpf(*words, returncode=3) as run:
        with packets.datagrams(one_host, one_host) as pair, packets.datagrams(*napi) as other:
            pair.send([10] * 23)
            other.send([10] * 23)
    assert len([row for row in run.rows if "dev" in row]) == 1
    assert run.summary["lost"]["map_full"] >= 23


# --- whatever the kind of probe -------------------------------------------------------------------

_used: list[str] = []


def act(stage: Stage, run: Run) -> None:
    _used[:] = [stage.right.device]
    with packets.offload(stage.left, "tso", False), packets.offload(stage.right, "gro", True):
        with packets.datagrams(stage.left, stage.right) as pair:
            pair.send([10] * 23)


def facts(run: Run, lost: set[str]) -> Any:
    kinds = {row["softirq"] for row in run.rows if row.get("runs") and row["run_us"]}
    polled = [(row["packets"], row["full"], row["netns"]) for row in devices_of(run, _used[0])]
    return "NET_RX" in kinds, polled


ALTERNATIVES = Case(lambda s: (WHOLE, "--devices"), act, facts)
