"""Kernel counters: all files, names as in nstat but with a dot, and only increases."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from netbpf.kernel import counters as counters_module
from netbpf.kernel.counter_files import FILES as _FILES
from netbpf.kernel.counters import AllCounters, Counters, increase

SNMP = """\
Ip: Forwarding DefaultTTL InReceives
Ip: 2 64 191
IcmpMsg: InType3 OutType3
IcmpMsg: 5 6
Tcp: RtoAlgorithm MaxConn ActiveOpens RetransSegs
Tcp: 1 -1 17 4
Udp: InDatagrams NoPorts RcvbufErrors
Udp: 7 23 2
"""
NETSTAT = """\
TcpExt: SyncookiesSent ListenOverflows ListenDrops
TcpExt: 0 3 18446744073709551615
IpExt: InNoRoutes InOctets
IpExt: 1 2
"""
SNMP6 = """\
Ip6InReceives                   \t12
Icmp6OutType133                 \t3
Udp6RcvbufErrors                \t4
UdpLite6InDatagrams             \t5
"""


def read_from(directory: Path) -> dict[str, int]:
    """Read the files of a directory as the files of a namespace."""
    counters = Counters.__new__(Counters)
    names = [name for name in _FILES if (directory / name).exists()]
    counters._files = [os.open(directory / name, os.O_RDONLY) for name in names]
    try:
        return counters.read()
    finally:
        counters.close()


@pytest.fixture
def net(tmp_path: Path) -> Path:
    for name, text in (("snmp", SNMP), ("netstat", NETSTAT), ("snmp6", SNMP6)):
        (tmp_path / name).write_text(text)
    return tmp_path


def test_counters_of_all_files_are_named_group_dot_name(net):
    found = read_from(net)
    assert found["Tcp.RetransSegs"] == 4
    assert found["Tcp.MaxConn"] == -1
    assert found["Udp.NoPorts"] == 23
    assert found["IcmpMsg.OutType3"] == 6
    assert found["TcpExt.ListenOverflows"] == 3
    assert found["TcpExt.ListenDrops"] == 2**64 - 1
    assert found["IpExt.InOctets"] == 2
    assert found["Ip6.InReceives"] == 12
    assert found["Icmp6.OutType133"] == 3
    assert found["Udp6.RcvbufErrors"] == 4
    assert found["UdpLite6.InDatagrams"] == 5
    assert len(found) == 21


DEV = """\
Inter-|   Receive                    |  Transmit
 face |bytes    packets errs drop fifo|bytes    packets errs drop
    lo: 100       2    0    0    0      100       2    0    0
eth0:1:1234567890 9    1    7    0       55       3    0    2
"""
SOFTNET = """\
00087fd7 00000003 00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000001
00095864 0000000a 00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000002
"""


def test_devices_have_counters_for_both_directions(tmp_path):
    (tmp_path / "dev").write_text(DEV)
    found = read_from(tmp_path)
    assert found["Device.lo.rx_packets"] == 2
    assert found["Device.eth0:1.rx_bytes"] == 1234567890
    assert found["Device.eth0:1.rx_drop"] == 7
    assert found["Device.eth0:1.tx_drop"] == 2


def test_softnet_is_the_sum_of_all_cpus(tmp_path):
    (tmp_path / "softnet_stat").write_text(SOFTNET)
    found = read_from(tmp_path)
    assert (found["Softnet.dropped"], found["Softnet.flow_limit"]) == (13, 3)
    assert (found["Softnet.0.dropped"], found["Softnet.1.dropped"]) == (3, 10)


def test_pattern_selects_counters_that_grew():
    before = {"Device.lo.rx_drop": 0, "Device.eth0.rx_drop": 1, "Device.eth0.tx_drop": 0}
    after = {"Device.lo.rx_drop": 0, "Device.eth0.rx_drop": 4, "Device.eth0.tx_drop": 9}
    assert increase(before, after, ["Device.*.rx_drop"]) == {"Device.eth0.rx_drop": 3}


@pytest.mark.parametrize("absent", ["snmp", "netstat", "snmp6"])
def test_a_missing_file_adds_nothing(net, absent):
    before = read_from(net)
    (net / absent).unlink()
    after = read_from(net)
    assert 0 < len(after) < len(before)
    assert after.items() <= before.items()


def test_no_files_are_no_counters(tmp_path):
    assert read_from(tmp_path) == {}


def test_increase_leaves_out_missing_counters():
    before, after = {"a": 1, "b": 5, "gone": 1}, {"a": 4, "b": 5, "new": 9}
    names = ["b", "a", "gone", "new", "absent"]
    assert increase(before, after, names) == {"b": 0, "a": 3}
    assert list(increase(before, after, names)) == ["b", "a"]


def test_the_same_files_are_read_again(net):
    # GIVEN counters that were read once
    counters = Counters.__new__(Counters)
    counters._files = [os.open(net / "snmp", os.O_RDONLY)]
    before = counters.read()
    # WHEN one grows
    (net / "snmp").write_text(SNMP.replace("7 23 2", "7 29 2"))
    # THEN the next read returns it
    assert increase(before, counters.read(), ["Udp.NoPorts", "Udp.InDatagrams"]) == {
        "Udp.NoPorts": 6,
        "Udp.InDatagrams": 0,
    }
    counters.close()


def test_the_running_kernel_has_counters():
    if not Path("/proc/self/net/snmp").exists():
        pytest.skip("needs /proc/net: run it on Linux with proc mounted")
    counters = Counters()
    assert "Tcp.RetransSegs" in counters.read()
    counters.close()
    assert counters.read() == {}


def test_unknown_namespace_has_no_counters():
    counters = Counters(netns=1)
    assert counters.read() == {}
    counters.close()


NETLINK = """\
sk               Eth Pid        Groups   Rmem     Wmem     Dump  Locks    Drops    Inode
0000000094535b2d 0   0          00000000 0        0        0     2        0        5821
0000000037ea549a 15  32417      00000001 4608     0        0     2        74       89892
"""
RAW = """\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops
  85: 00000000:0011 00000000:0000 07 00000000:00001200 00:00000000 00000000     0        0 89188 2 00000000cf690e03 7
"""  # noqa: E501
RAW6 = """\
  sl  local_address                         remote_address                        st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops
   58: 00000000000000000000000000000000:003A 00000000000000000000000000000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 30500 2 00000000cf690e04 9
"""  # noqa: E501


def test_sockets_have_their_drops_by_inode(tmp_path):
    for name, text in (("netlink", NETLINK), ("raw", RAW), ("raw6", RAW6)):
        (tmp_path / name).write_text(text)
    assert read_from(tmp_path) == {
        "Netlink.5821.drops": 0,
        "Netlink.89892.drops": 74,
        "Raw.89188.drops": 7,
        "Raw6.30500.drops": 9,
    }


def test_new_socket_grows_from_zero():
    before, after = {"Raw.1.drops": 3}, {"Raw.1.drops": 3, "Raw.2.drops": 5, "Netlink.3.drops": 0}
    assert increase(before, after, ["Raw.*.drops", "Netlink.*.drops"]) == {"Raw.2.drops": 5}


# --- all namespaces -------------------------------------------------------------------------------


class Machine:
    """A /proc with processes, each in its own network namespace with counters."""

    def __init__(self, proc: Path) -> None:
        self.proc = proc

    def process(self, name: str, inode: int, **values: int) -> None:
        (self.proc / name / "ns").mkdir(parents=True, exist_ok=True)
        (self.proc / name / "ns" / "net").unlink(missing_ok=True)
        (self.proc / name / "ns" / "net").symlink_to(f"net:[{inode}]")
        self.count(name, **values)

    def count(self, name: str, **values: int) -> None:
        (self.proc / name / "net").mkdir(exist_ok=True)
        head, numbers = " ".join(values), " ".join(map(str, values.values()))
        (self.proc / name / "net" / "snmp").write_text(f"Tcp: {head}\nTcp: {numbers}\n")

    def end(self, name: str) -> None:
        shutil.rmtree(self.proc / name)

    def counters(self, *names: str) -> AllCounters:
        return AllCounters(names or ("Tcp.RetransSegs",), str(self.proc), str(self.proc / "named"))


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    found = Machine(tmp_path)
    found.process("self", 1, RetransSegs=100, OutSegs=1000)
    found.process("23", 1, RetransSegs=100, OutSegs=1000)
    found.process("42", 2, RetransSegs=50, OutSegs=500)
    return found


def grown(counters: AllCounters, name: str = "Tcp.RetransSegs") -> int:
    return counters.read()[name]


def test_each_namespace_is_added_once(machine):
    counters = machine.counters()
    assert counters.namespaces == {1, 2}
    for process in ("self", "23"):
        machine.count(process, RetransSegs=103, OutSegs=1003)
    machine.count("42", RetransSegs=57, OutSegs=507)
    assert grown(counters) == 10
    assert grown(counters) == 10
    before = counters.read()
    machine.count("42", RetransSegs=58, OutSegs=508)
    assert increase(before, counters.read(), ["Tcp.RetransSegs"]) == {"Tcp.RetransSegs": 1}


def test_new_namespace_counts_from_zero(machine):
    counters = machine.counters()
    machine.process("77", 3, RetransSegs=5, OutSegs=9)
    assert grown(counters) == 5
    machine.count("77", RetransSegs=7, OutSegs=9)
    assert grown(counters) == 7
    assert counters.namespaces == {1, 2, 3}


def test_counts_of_an_ended_namespace_stay_in_the_sum(machine):
    counters = machine.counters()
    machine.count("42", RetransSegs=57, OutSegs=507)
    assert grown(counters) == 7
    machine.end("42")
    assert grown(counters) == 7
    assert counters.ended == 1
    # A new namespace gets its inode number.
    machine.process("43", 2, RetransSegs=2, OutSegs=2)
    assert grown(counters) == 9
    machine.end("43")
    assert grown(counters) == 9
    assert counters.ended == 2


def test_counters_of_the_machine_count_once(machine):
    for process in ("self", "42"):
        (machine.proc / process / "net" / "softnet_stat").write_text("00000009 00000001 00000000\n")
    counters = machine.counters("Softnet.dropped")
    for process in ("self", "42"):
        (machine.proc / process / "net" / "softnet_stat").write_text("00000009 00000004 00000000\n")
    assert grown(counters, "Softnet.dropped") == 3


def test_counter_that_is_reset_does_not_reduce_the_sum(machine):
    counters = machine.counters("Device.*.rx_drop")
    place = machine.proc / "42" / "net" / "dev"
    place.write_text(DEV)
    before = counters.read()
    place.write_text(DEV.replace("9    1    7", "9    1    3"))  # its driver was reset
    counters.update()
    place.write_text(DEV.replace("9    1    7", "9    1    5"))
    found = increase(before, counters.read(), ["Device.*.rx_drop"])
    assert found == {"Device.eth0:1.rx_drop": 2}


def test_namespace_with_a_reused_inode_begins_at_zero(machine):
    counters = machine.counters()
    machine.process("42", 2, RetransSegs=60, OutSegs=3)
    assert grown(counters) == 60


def test_counters_that_did_not_grow_are_zero(machine):
    counters = machine.counters()
    before = counters.read()
    names = ["Tcp.RetransSegs", "Tcp.Absent"]
    assert increase(before, counters.read(), names) == {"Tcp.RetransSegs": 0}


def test_new_device_does_not_add_its_earlier_counts(machine):
    counters = machine.counters("Device.*.rx_drop")
    before = counters.read()
    (machine.proc / "42" / "net" / "dev").write_text(DEV)
    after = counters.read()
    assert increase(before, after, ["Device.*.rx_drop"]) == {}
    (machine.proc / "42" / "net" / "dev").write_text(DEV.replace("9    1    7", "9    1    9"))
    found = increase(before, counters.read(), ["Device.*.rx_drop"])
    assert found == {"Device.eth0:1.rx_drop": 2}


def test_namespace_without_files_is_unread(machine):
    machine.end("42")
    machine.process("42", 2)
    (machine.proc / "42" / "net" / "snmp").unlink()
    assert machine.counters().unread == 1


@pytest.mark.parametrize(
    ("name", "shown"), [(b"a\x1cb", "a\x1cb"), (b"\xff", "\\xff"), ("\u2028".encode(), "\u2028")]
)
def test_every_device_name_that_the_kernel_allows_is_read(tmp_path, name, shown):
    head = b"Inter-|   Receive   |  Transmit\n face |bytes packets|bytes packets\n"
    (tmp_path / "dev").write_bytes(head + b"  " + name + b": 1 2 3 4\n")
    names = ("rx_bytes", "rx_packets", "tx_bytes", "tx_packets")
    assert read_from(tmp_path) == {f"Device.{shown}.{n}": i + 1 for i, n in enumerate(names)}


def test_update_is_bounded_in_time(machine, monkeypatch):
    usual, now = counters_module.read_once, [1000.0]

    def slow(directory: str, names: list[str]) -> dict[str, int]:
        now[0] += 0.04
        return usual(directory, names)

    monkeypatch.setattr(counters_module, "read_once", slow)
    monkeypatch.setattr(counters_module.time, "monotonic", lambda: now[0])
    for number in range(10, 20):
        machine.process(str(number), number, RetransSegs=number, OutSegs=1)
    counters = machine.counters()
    assert len(counters.namespaces) == 12
    for number in range(10, 20):
        machine.count(str(number), RetransSegs=number + 1, OutSegs=1)
    began = now[0]
    counters.update()
    assert now[0] - began < 0.2
    assert counters.unread == 9
    for _ in range(4):  # the others are next
        counters.update()
    # Namespaces skipped in one update are neither counted twice nor from zero in a later one.
    assert counters._sum["Tcp.RetransSegs"] == 10
