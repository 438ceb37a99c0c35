"""Filters: the generated C matches exactly the requested objects."""

from __future__ import annotations

import fnmatch
import ipaddress
import pwd
import random
import re
import struct
from pathlib import Path

import pytest

from netbpf.declare.options import comm_glob, network, ports
from netbpf.errors import UsageError
from netbpf.run import filters
from netbpf.run.comm_automaton import CommAutomaton
from netbpf.run.filters import block_constants, filter_defines, network_namespace


def evaluate(expression: str, **values: int) -> int:
    """Return the value of a C expression of the subset that filters.py generates."""
    python = re.sub(r"LOAD_CONSTANT\((\d+)\)", r"\1", expression)
    python = python.replace("&&", " and ").replace("||", " or ").replace("(u32)", "int")
    python = re.sub(r"!(?!=)", " not ", re.sub(r"(\d)U(LL)?\b", r"\1", python))
    return int(eval(python, {"int": int}, values))


def body_of(line: str) -> str:
    """Return the body of a #define."""
    found = re.fullmatch(r"#define (\w+(?:\(\w\))?) (.*)", line)
    assert found, line
    return found[2]


class Automaton:
    """The loop of pass_comm() in filter.bpf.h, with what it gets from Python."""

    def __init__(self, glob: str) -> None:
        automaton = CommAutomaton.of(glob)
        stars, length = map(body_of, automaton.defines())
        self.tokens = struct.unpack("=256I", automaton.table())
        self.stars, self.length = evaluate(stars), evaluate(length)

    def match(self, name: str) -> bool:
        matched = 1
        for c in name.encode("latin-1"):
            matched = (matched & self.tokens[c]) << 1 & 0xFFFFFFFF | (matched & self.stars)
        return bool(matched >> self.length & 1)


GLOBS = [
    "*", "**", "?", "nginx", "nginx*", "*nginx", "*n*x*", "a?c", "[abc]*", "[!a]b", "[a-c]x",
    "[]]", "[!]]", "[]a]b", "[a-]", "[-a]", "[!-a]", "[a", "a[", "[", "]", "[]", "[!]", "[!", "a]b",
    "[[]", "[z-a]", "[a-c-e]", "[^a]", "[*]", "[?]", "*[!a-z]*", "kworker/*", "x" * 15,
    "*" * 20 + "x", "a*b*c*d", "\\*", "[\\]]", "(sd-pam)", "[a-a]", "[--0]", "[]-a]",
]  # fmt: skip
NAMES = [
    "", "a", "b", "x", "nginx", "nginx: worker", "abc", "ab", "a]b", "[", "]", "[]", "[!]", "[a",
    "a[", "-", "!", "^", "*", "?", "kworker/0:1", "x" * 15, "x" * 14, "axbxcxd", "(sd-pam)", "\\",
    "\\*", "\\]", "\x1b[2J", "\x80\xff", "0", "[!",
]  # fmt: skip


def understood(glob: str) -> bool:
    """Return whether this Python's fnmatch supports the glob: old versions fail for [z-a]."""
    try:
        return fnmatch.fnmatchcase("", glob) in (True, False)
    except re.error:
        return False


@pytest.mark.parametrize("glob", filter(understood, GLOBS))
def test_automaton_matches_what_fnmatch_matches(glob):
    automaton = Automaton(glob)
    for name in NAMES:
        assert automaton.match(name) == fnmatch.fnmatchcase(name, glob), (glob, name)


def test_automaton_agrees_with_fnmatch_on_random_patterns():
    # GIVEN random patterns over few characters, so that many names match
    chance = random.Random(31)
    matched = tried = 0
    for _ in range(1200):
        glob = "".join(chance.choice("ab*?[]!-") for _ in range(chance.randint(1, 10)))
        if not understood(glob):
            continue
        automaton = Automaton(glob)
        for _ in range(20):
            name = "".join(chance.choice("ab]-!") for _ in range(chance.randint(0, 8)))
            expected = fnmatch.fnmatchcase(name, glob)
            assert automaton.match(name) == expected, (glob, name)
            matched, tried = matched + expected, tried + 1
    # THEN both results were frequent
    assert 500 < matched < tried - 500


def test_automaton_fits_into_32_bits():
    glob = comm_glob("*" + "?" * 15 + "*")
    assert Automaton(glob).length == 15
    assert Automaton(glob).match("x" * 15)


def test_all_patterns_are_the_same_program():
    texts = {re.sub(r"\d+", "N", "\n".join(CommAutomaton.of(glob).defines())) for glob in GLOBS}
    assert len(texts) == 1


def test_port_ranges_match_exactly_these_ports():
    chance = random.Random(37)
    for _ in range(60):
        low = chance.randint(1, 65535)
        asked = ",".join([f"{low}-{chance.randint(low, 65535)}", str(chance.randint(1, 65535))])
        ranges = ports(asked)
        [line] = filter_defines({"lport": ranges})
        wanted = {low for pair in ranges for low in pair}
        for port in {p + d for p in wanted for d in (-1, 0, 1)} | {0, 65535}:
            expected = any(low <= port <= high for low, high in ranges)
            assert bool(evaluate(body_of(line), x=port)) == expected, (asked, port)


def in_block(address: bytes, words: str) -> bool:
    """Compute in_block() of sock.bpf.h for the four words."""
    net0, net1, mask0, mask1 = (evaluate(word) for word in words.split(", "))
    low, high = struct.unpack("=QQ", address)
    return low & mask0 == net0 and high & mask1 == net1


def as_memory(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bytes:
    mapped = b"\0" * 10 + b"\xff\xff" if address.version == 4 else b""
    return mapped + address.packed


@pytest.mark.parametrize(("version", "bits"), [(4, 32), (6, 128)])
def test_address_blocks_match_exactly_their_addresses(version, bits):
    chance = random.Random(41)
    kinds = {4: ipaddress.IPv4Address, 6: ipaddress.IPv6Address}
    for _ in range(400):
        length = chance.randint(0, bits)
        base = chance.getrandbits(bits) >> (bits - length) << (bits - length)
        block = network(f"{kinds[version](base)}/{length}")
        words = block_constants(block)
        near = [base, base | (1 << (bits - length)) - 1, base ^ 1 << chance.randrange(bits)]
        for number in [*near, chance.getrandbits(bits)]:
            address = kinds[version](number)
            assert in_block(as_memory(address), words) == (address in block), (block, address)


def test_ipv4_block_matches_no_ipv6_address_and_all_of_ipv6_matches_ipv4():
    every_ipv4 = block_constants(network("0.0.0.0/0"))
    assert in_block(as_memory(ipaddress.ip_address("10.0.0.1")), every_ipv4)
    assert not in_block(as_memory(ipaddress.ip_address("2001:db8::1")), every_ipv4)
    assert in_block(as_memory(ipaddress.ip_address("10.0.0.1")), block_constants(network("::/0")))


def test_without_filters_nothing_is_defined():
    nothing = dict.fromkeys(("pid", "uid", "comm", "cgroup", "netns", "lport", "laddr"))
    assert filter_defines({**nothing, "ipv4": False, "ipv6": False}) == []


@pytest.mark.parametrize(("option", "word"), [("ipv4", "AF_INET"), ("ipv6", "AF_INET6")])
def test_family_is_one_constant(option, word):
    other = {"ipv4": "ipv6", "ipv6": "ipv4"}[option]
    assert filter_defines({option: True, other: False}) == [f"#define FILTER_FAMILY {word}"]


def test_both_families_are_an_error():
    with pytest.raises(UsageError, match="exclude each other"):
        filter_defines({"ipv4": True, "ipv6": True})


@pytest.fixture
def proc(tmp_path: Path) -> str:
    """A proc tree with process 41 in network namespace of some inode."""
    directory = tmp_path / "41" / "ns"
    directory.mkdir(parents=True)
    (directory / "net").symlink_to("net:[4026531840]")
    (tmp_path / "self" / "ns").mkdir(parents=True)
    (tmp_path / "self" / "ns" / "net").write_text("")
    (tmp_path / "42").mkdir()  # a process that is gone but not yet waited for has no namespace
    return str(tmp_path)


def test_pids_must_exist(proc):
    defined = filter_defines({"pid": [41]}, proc)
    assert defined == ["#define FILTER_PID(x) ((x) == LOAD_CONSTANT(41))"]
    with pytest.raises(UsageError, match="--pid: there is no process 43"):
        filter_defines({"pid": [41, 43]}, proc)


def test_several_pids_are_alternatives(proc):
    [line] = filter_defines({"pid": [41, 42]}, proc)
    assert [x for x in range(100) if evaluate(body_of(line), x=x)] == [41, 42]


def test_uids_are_numbers_or_names():
    [line] = filter_defines({"uid": "7,root"})
    found = {x for x in range(100) if evaluate(body_of(line), x=x)}
    assert found == {7, pwd.getpwnam("root").pw_uid}


@pytest.mark.parametrize("word", ["", "no-such-user", "-1", "4294967296", "1;", "\0", "root,"])
def test_unknown_user_is_an_error(word):
    with pytest.raises(UsageError, match="--uid: there is no user"):
        filter_defines({"uid": word or ","})


def test_threads_and_ended_processes_are_an_error(proc):
    status = Path(proc, "41", "status")
    status.write_text("Name:\tnginx\nState:\tS (sleeping)\nTgid:\t40\n")
    with pytest.raises(UsageError, match="41 is a thread of process 40 .nginx") as caught:
        filter_defines({"pid": [41]}, proc)
    assert "-p 40" in caught.value.hint
    status.write_text("Name:\tnginx\nState:\tZ (zombie)\nTgid:\t41\n")
    with pytest.raises(UsageError, match="process 41 has ended"):
        filter_defines({"pid": [41]}, proc)


def test_network_namespace_by_pid_and_inode(proc):
    assert network_namespace("41", proc) == 4026531840
    assert network_namespace("4026531840", proc) == 4026531840
    [line] = filter_defines({"netns": "4026531840"}, proc)
    assert line == "#define FILTER_NETNS LOAD_CONSTANT(4026531840)"


@pytest.fixture
def named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory of named namespaces; each file in it counts as a namespace."""
    directory = tmp_path / "named"
    directory.mkdir()
    monkeypatch.setattr(filters, "NAMED", str(directory))
    return directory


def test_network_namespace_by_name_and_by_path(named, proc):
    (named / "blue").write_text("")
    (named / "77000001").write_text("")
    assert network_namespace("blue", proc) == (named / "blue").stat().st_ino
    assert network_namespace("77000001", proc) == (named / "77000001").stat().st_ino
    assert network_namespace(str(named / "blue"), proc) == (named / "blue").stat().st_ino


def test_name_that_is_also_a_process_elsewhere_is_ambiguous(named, proc):
    (named / "41").write_text("")
    with pytest.raises(UsageError, match="41 is the name of a namespace and the id") as caught:
        network_namespace("41", proc)
    assert "4026531840" in caught.value.hint and f"{named}/41" in caught.value.hint
    # Not ambiguous if both are the same namespace.
    link = Path(proc, "41", "ns", "net")
    link.unlink()
    link.symlink_to(f"net:[{(named / '41').stat().st_ino}]")
    assert network_namespace("41", proc) == (named / "41").stat().st_ino


@pytest.mark.parametrize(
    "word",
    [
        "",
        "43",
        "42",
        "0",
        "5000000000",
        ".",
        "..",
        "../etc",
        "/etc",
        "no-such",
        "a\0b",
        "\u00e9" * 200,
    ],
)
def test_unknown_network_namespace_is_an_error(proc, word):
    with pytest.raises(UsageError, match="--netns: there is no"):
        network_namespace(word, proc)


def test_cgroup_and_container_exclude_each_other():
    with pytest.raises(UsageError, match="exclude each other"):
        filter_defines({"cgroup": "a", "container": "b"})


def test_cgroup_is_its_id_at_its_level(monkeypatch):
    monkeypatch.setattr(filters, "cgroup_id", lambda path: 77)
    monkeypatch.setattr(filters, "container_cgroups", lambda prefix: [78])
    monkeypatch.setattr(filters, "level_of", {77: 3, 78: None}.get)
    assert filter_defines({"cgroup": "a"}) == [
        "#define FILTER_CGROUP LOAD_CONSTANT(77)",
        "#define FILTER_CGROUP_AT(at) (at(LOAD_CONSTANT(3), LOAD_CONSTANT(77)))",
    ]
    assert filter_defines({"container": "b"}) == ["#define FILTER_CGROUP LOAD_CONSTANT(78)"]


def test_all_cgroups_of_a_container_are_alternatives(monkeypatch):
    monkeypatch.setattr(filters, "container_cgroups", lambda prefix: [78, 79])
    monkeypatch.setattr(filters, "level_of", {78: 3, 79: 0}.get)
    _, levels = filter_defines({"container": "b"})
    assert levels.endswith(
        " (at(LOAD_CONSTANT(3), LOAD_CONSTANT(78)) || at(LOAD_CONSTANT(0), LOAD_CONSTANT(79)))"
    )
    monkeypatch.setattr(filters, "level_of", {78: 3}.get)
    first, several = filter_defines({"container": "b"})
    assert first == "#define FILTER_CGROUP LOAD_CONSTANT(78)"
    assert [x for x in range(100) if evaluate(body_of(several), x=x)] == [78, 79]


@pytest.mark.parametrize(
    ("settings", "fits"),
    [
        ({"ipv4": True, "laddr": "2001:db8::/32"}, False),
        ({"ipv4": True, "laddr": "::ffff:10.0.0.0/104"}, True),
        ({"ipv4": True, "raddr": "::/0"}, True),
        ({"ipv6": True, "raddr": "10.0.0.0/8"}, False),
        ({"ipv6": True, "raddr": "::ffff:10.0.0.1"}, False),
        ({"ipv6": True, "raddr": "::/0"}, True),
        ({"laddr": "10.0.0.0/8", "raddr": "2001:db8::1"}, False),
        ({"laddr": "10.0.0.0/8", "raddr": "::ffff:10.0.0.1"}, True),
        ({"laddr": "2001:db8::1", "raddr": "2001:db8::2"}, True),
    ],
)
def test_families_that_no_socket_has_together_are_an_error(settings, fits):
    given = {n: v if v is True else network(v) for n, v in settings.items()}
    if fits:
        assert filter_defines(given)
        return
    with pytest.raises(UsageError, match="exclude each other") as caught:
        filter_defines(given)
    assert caught.value.hint


def test_set_of_characters_is_one_character_of_a_name():
    assert comm_glob("[abcdefgh]nginx[0-9]*")
    with pytest.raises(ValueError, match="cannot match"):
        comm_glob("[ab]" * 16)
