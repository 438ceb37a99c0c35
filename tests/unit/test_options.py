"""Options: each parser accepts valid arguments and rejects others with a message."""

from __future__ import annotations

import ipaddress
import socket
import sys

import pytest

from netbpf.declare import options
from netbpf.declare.connects import proto_constants
from netbpf.declare.constants import one_of_names
from netbpf.declare.drops import protocols
from netbpf.declare.network import protocol_name, protocol_numbers
from netbpf.declare.options import (
    EVENT_LIMITS,
    FILTERS,
    LIMITS,
    MAX_LIST,
    OUTPUT,
    SORT,
    Option,
    by_name,
    comm_glob,
    count,
    devices,
    integers,
    milliseconds,
    names,
    network,
    nonempty,
    percent,
    ports,
    seconds,
    size,
)
from netbpf.declare.tool import find_tool
from netbpf.errors import UsageError

COMMON = (*OUTPUT, *SORT, *LIMITS, *EVENT_LIMITS, *FILTERS)
NET = ipaddress.ip_network
GOOD = [
    (nonempty, "any text\n", "any text\n"),
    (integers, "1", [1]),
    (integers, "12,34,12", [12, 34, 12]),
    (integers, "4294967295", [2**32 - 1]),
    (integers, "007", [7]),
    (integers, ",".join(["1"] * MAX_LIST), [1] * MAX_LIST),
    (ports, "80", [(80, 80)]),
    (ports, "1,65535", [(1, 1), (65535, 65535)]),
    (ports, "80,8000-8100", [(80, 80), (8000, 8100)]),
    (ports, "5-5", [(5, 5)]),
    (network, "10.0.0.0/8", NET("10.0.0.0/8")),
    (network, "10.1.2.3", NET("10.1.2.3/32")),
    (network, "2001:db8::/32", NET("2001:db8::/32")),
    (network, "::1", NET("::1/128")),
    (network, "0.0.0.0/0", NET("0.0.0.0/0")),
    (seconds, "10", 10.0),
    (seconds, "0.5", 0.5),
    (seconds, "0.001", 0.001),
    (seconds, "90s", 90.0),
    (seconds, "0.5s", 0.5),
    (seconds, "1m", 60.0),
    (seconds, "1h", 3600.0),
    (seconds, "2m30s", 150.0),
    (seconds, "1d2h3m4.5s", 93784.5),
    (names, "pid,RADDR,pid", ["pid", "raddr"]),
    (percent, "12.5", 12.5),
    (milliseconds, "0", 0.0),
    (milliseconds, "1.25", 1.25),
    (count, "1", 1),
    (count, "2147483647", 2**31 - 1),
    (size, "4096", 4096),
    (size, "256k", 256 << 10),
    (size, "4M", 4 << 20),
    (size, "1g", 1 << 30),
    (size, "64KiB", 64 << 10),
    (comm_glob, "nginx*", "nginx*"),
    (comm_glob, "*", "*"),
    (comm_glob, "*" * 40 + "x" * 15, "*" * 40 + "x" * 15),
    (devices, "eth0,lo", ["eth0", "lo"]),
    (devices, "br-0.100@x", ["br-0.100@x"]),
    (devices, "x" * 15, ["x" * 15]),
]
BAD = [
    (nonempty, ["", " "]),
    (integers, ["", "0", "-1", "1,", ",1", "1,,2", "x", "1.5", "4294967296", " 1", "1 ", "0x10",
                "99999999999", "\u0661", ",".join(["1"] * (MAX_LIST + 1))]),
    (ports, ["", "0", "65536", "90-80", "-80", "80-", "1-2-3", "no-such-service", "80,",
             "80;90", "\u0668"]),
    (network, ["", "10.0.0.1/8", "10.0.0.0/33", "10.0.0", "300.1.1.1", "::/129", "host", "1"]),
    (seconds, ["", "0", "-1", "1e3", "nan", "inf", ".5", "5.", "1,5", "1000000000", "\u0661", "m",
               "0m", "1m2h", "90 s", "1M", "2m30", "-1m", "1.5m", "99999d"]),
    (names, ["", "pid,", ",pid"]),
    (percent, ["", "0", "-5", "1%", "100001"]),
    (milliseconds, ["", "-1", "x", "1e3"]),
    (count, ["", "0", "-1", "2147483648", "1.0", "+1"]),
    (size, ["", "k", "4095", "1025m", "2g", "1.5m", "-4k", "4 k", "4x", "\uff14m", "4096 "]),
    (comm_glob, ["", "x" * 16, "caf\u00e9"]),

    (devices, ["", "lo,", ",lo", "lo,a b", "x" * 128, "a/b", "a\nb", "a\0b", "\u00e9" * 64]),
]  # fmt: skip
PARSERS = {parse for parse, _ in BAD} | {nonempty}


@pytest.mark.parametrize(
    ("parse", "text", "value"), GOOD, ids=[f"{p.__name__}-{t[:20]!r}" for p, t, _ in GOOD]
)
def test_valid_argument_is_parsed(parse, text, value):
    assert parse(text) == value


@pytest.mark.parametrize(
    ("parse", "text"),
    [(parse, text) for parse, texts in BAD for text in texts],
    ids=lambda part: part.__name__ if callable(part) else repr(part[:20]),
)
def test_invalid_argument_has_an_error_message(parse, text):
    with pytest.raises(ValueError, match=r"\w+ \w+") as caught:
        parse(text)
    assert "invalid literal" not in str(caught.value)


NOT_PARSERS = (by_name, options.nanoseconds, options.one_or_more)


def test_every_parser_is_tested():
    used = {option.parse for option in COMMON if option.parse}
    assert used <= PARSERS
    public = {
        f
        for name, f in vars(options).items()
        if callable(f) and getattr(f, "__module__", "") == options.__name__
        if name[0] != "_" and not isinstance(f, type) and f not in NOT_PARSERS
    }
    assert public == PARSERS


def test_option_is_named_by_its_longest_flag():
    assert Option("-p", "--pid", help="x").name == "pid"
    assert Option("--max-events", "-n", help="x").name == "max_events"
    assert Option("-s", help="x").name == "s"


def test_switch_is_off_unless_given_and_argument_has_its_default():
    assert Option("--open", help="x").default is False
    assert Option("--buffer", help="x", parse=size, default="1m").default == "1m"
    assert Option("--output", help="x", choices=("a", "b"), default="a").default == "a"


def test_bad_argument_is_a_usage_error_that_names_the_option():
    option = by_name(COMMON)["lport"]
    with pytest.raises(UsageError) as caught:
        option.value("htpp")
    assert caught.value.message.startswith("--lport: 'htpp'")
    assert caught.value.hint.startswith("--lport: ")
    assert caught.value.exit_code == 2


def test_absent_argument_stays_absent():
    assert by_name(COMMON)["lport"].value(None) is None
    assert by_name(COMMON)["wide"].value(False) is False


def test_names_and_flags_of_common_options_are_unique():
    names = [option.name for option in COMMON]
    flags = [flag for option in COMMON for flag in option.flags]
    assert len(set(names)) == len(names)
    assert len(set(flags)) == len(flags)


def test_defaults_are_acceptable():
    for option in COMMON:
        if option.parse and option.default is not None:
            option.value(option.default)
        if option.choices:
            assert option.default in option.choices


def test_port_may_be_the_name_of_a_service(monkeypatch):
    services = {("http-alt", "tcp"): 8080, ("syslog", "udp"): 514, ("3com", "tcp"): 1106}
    services |= {("odd", "tcp"): 600, ("odd", "udp"): 601}

    def getservbyname(name, protocol):
        if (name, protocol) not in services:
            raise OSError("service/proto not found")
        return services[name, protocol]

    monkeypatch.setattr(socket, "getservbyname", getservbyname)
    assert ports("http-alt,80,syslog") == [(8080, 8080), (80, 80), (514, 514)]
    assert ports("3com") == [(1106, 1106)]
    assert ports("odd") == [(600, 600), (601, 601)]
    with pytest.raises(ValueError, match="'htpp' is neither a port nor a service"):
        ports("80,htpp")


@pytest.mark.parametrize("name", ["eth0", "a\x1cb", "\udcff", "à", "\u2028", "x" * 127])
def test_every_valid_device_name_is_accepted(name):
    assert devices(f"lo,{name}") == ["lo", name]
    short = name[:5]
    text = one_of_names("a", "b", [short])
    low = int.from_bytes(short.encode(errors="surrogateescape")[:8], sys.byteorder)
    assert f"LOAD_CONSTANT({low})" in text


@pytest.mark.parametrize("name", ["", "a b", "a\n", "a/b", "\0", "à" * 64])
def test_invalid_device_name_is_an_error(name):
    with pytest.raises(ValueError, match="empty|network device"):
        devices(name)


def test_protocols_are_a_list_of_the_tools_own_words():
    (proto,) = [one for one in find_tool("soconnect").options if one.name == "proto"]
    assert proto.value("udp,tcp") == ["udp", "tcp"]
    for text in ("", "udp,", "sctp", "UDP"):
        with pytest.raises(UsageError, match="--proto"):
            proto.value(text)


@pytest.mark.parametrize(
    ("given", "constants"),
    [
        ({}, []),
        ({"udp": True}, ["WITH_UDP"]),
        ({"proto": ["udp"]}, ["WITHOUT_TCP", "WITH_UDP"]),
        ({"proto": ["unix", "tcp"]}, ["WITH_UNIX"]),
        ({"proto": ["unix"], "udp": True}, ["WITHOUT_TCP", "WITH_UDP", "WITH_UNIX"]),
    ],
    ids=str,
)
def test_protocols_of_soconnect_become_constants(given, constants):
    settings = {"proto": None, "udp": False, "unix": False, **given}
    assert sorted(proto_constants(settings)) == constants


@pytest.mark.parametrize(
    ("name", "numbers"), [("tcp", [6]), ("arp", [0x10806]), ("ip", [0, 0x10800])]
)
def test_protocols_of_packets_are_found_by_name(name, numbers):
    assert protocol_numbers(name) == numbers
    assert {protocol_name(number) for number in numbers} == {name}


def test_unknown_protocol_of_packets_is_an_error_that_lists_the_known_ones():
    with pytest.raises(ValueError, match="'http' is not one of .*tcp"):
        protocols("tcp,http")
