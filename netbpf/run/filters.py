"""Translate filter options into C definitions.

Only validated numbers are written into C. A name (of a process, user or container) is resolved
here, or becomes an automaton of character codes.
"""

from __future__ import annotations

import fnmatch
import ipaddress
import os
import pwd
import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from stat import S_ISREG
from typing import Any

from netbpf.declare.aggregation import Aggregation
from netbpf.declare.constants import in_ranges, load_constant, one_of
from netbpf.declare.needs import OF_DEVICES, OF_PROCESS
from netbpf.declare.options import Network, Option, devices
from netbpf.declare.tool import Tool
from netbpf.errors import UsageError
from netbpf.kernel.cgroups import cgroup_id, container_cgroups, level_of
from netbpf.kernel.namespaces import NAMED, is_namespace, namespace_of
from netbpf.kernel.processes import kernel_pid
from netbpf.run.comm_automaton import CommAutomaton
from netbpf.system.privileges import lacks, missing_privileges, privilege_error
from netbpf.system.untrusted import read_text

_MAPPED = ipaddress.IPv6Network("::ffff:0:0/96")  # IPv4 addresses of IPv6 sockets
# Options of single tools that filter.
_MAX_THREADS = 100  # whose names are compared
_MAX_NAMES = 20  # of devices, in a hint
_FIRST_NAMESPACE = 0xEFFFFFF8  # inode numbers of namespaces start above: PROC_UTS_INIT_INO etc.


def filter_defines(settings: Mapping[str, Any], proc: str = "/proc") -> list[str]:
    """Return the C lines for the filters in `settings`; UsageError if an object does not exist."""
    lines = []
    if settings.get("pid"):
        pids = [kernel_pid(pid, proc) for pid in settings["pid"]]
        lines.append(f"#define FILTER_PID(x) {one_of('x', pids)}")
    if settings.get("uid"):
        uids = [_user(word) for word in settings["uid"].split(",")]
        lines.append(f"#define FILTER_UID(x) {one_of('x', uids)}")
    if settings.get("comm"):
        lines += CommAutomaton.of(settings["comm"]).defines()
    lines += _cgroup_defines(_cgroups(settings))
    if settings.get("netns"):
        netns = network_namespace(settings["netns"], proc)
        lines.append(f"#define FILTER_NETNS {load_constant(netns)}")
    return [*lines, *_socket_defines(settings)]


def _socket_defines(settings: Mapping[str, Any]) -> Iterator[str]:
    if settings.get("ipv4") and settings.get("ipv6"):
        raise UsageError("-4 and -6 exclude each other", "leave both out to see both")
    if settings.get("ipv4") or settings.get("ipv6"):
        yield f"#define FILTER_FAMILY {'AF_INET' if settings.get('ipv4') else 'AF_INET6'}"
    for side in ("lport", "rport"):
        if settings.get(side):
            yield f"#define FILTER_{side.upper()}(x) {in_ranges('x', settings[side])}"
    _check_families(settings)
    for side in ("laddr", "raddr"):
        if settings.get(side):
            yield f"#define FILTER_{side.upper()} {block_constants(settings[side])}"


def _check_families(settings: Mapping[str, Any]) -> None:
    # -4 includes IPv4-mapped addresses, and -6 excludes them.
    possible = {4} if settings.get("ipv4") else {6} if settings.get("ipv6") else {4, 6}
    given = ["-4"] * bool(settings.get("ipv4")) + ["-6"] * bool(settings.get("ipv6"))
    for side in ("laddr", "raddr"):
        if settings.get(side):
            given.append(f"--{side} {settings[side]}")
            possible &= _families(settings[side])
    if not possible:
        raise UsageError(
            f"{' and '.join(given)} exclude each other: no socket has addresses of both families",
            "give blocks of one family, and leave -4 and -6 out or let them agree",
        )


def _families(block: Network) -> set[int]:
    if isinstance(block, ipaddress.IPv4Network):
        return {4}
    return ({4} if block.overlaps(_MAPPED) else set()) | (
        {6} if not block.subnet_of(_MAPPED) else set()
    )


def block_constants(block: Network) -> str:
    """Return an address block as four u64 for in_block(): network and mask, as in memory."""
    mapped = b"\0" * 10 + b"\xff\xff" if isinstance(block, ipaddress.IPv4Network) else b""
    network = mapped + block.network_address.packed
    mask = (b"\xff" * 12 if mapped else b"") + block.netmask.packed
    return ", ".join(map(load_constant, struct.unpack("=4Q", network + mask)))


def _user(word: str) -> int:
    if re.fullmatch(r"[0-9]{1,10}", word) and int(word) < 2**32 - 1:  # -1 is not a user id
        return int(word)
    try:
        return pwd.getpwnam(word).pw_uid
    except (KeyError, ValueError):
        raise UsageError(f"--uid: there is no user '{word}'", "give a name or a number") from None


def _cgroups(settings: Mapping[str, Any]) -> list[int]:
    if settings.get("cgroup") and settings.get("container"):
        raise UsageError("--cgroup and --container exclude each other", "give one of them")
    if settings.get("cgroup"):
        return [cgroup_id(settings["cgroup"])]
    return container_cgroups(settings["container"]) if settings.get("container") else []


def _cgroup_defines(cgroups: Sequence[int]) -> Iterator[str]:
    if not cgroups:
        return
    yield f"#define FILTER_CGROUP {load_constant(cgroups[0])}"
    levels = [level_of(cgroup) for cgroup in cgroups]
    if None not in levels:
        tests = (
            f"at({load_constant(n or 0)}, {load_constant(one)})" for n, one in zip(levels, cgroups)
        )
        yield f"#define FILTER_CGROUP_AT(at) ({' || '.join(tests)})"
    elif len(cgroups) > 1:
        yield f"#define FILTER_CGROUPS(x) {one_of('x', cgroups)}"


def netns_of(settings: Mapping[str, Any]) -> int:
    """Return the inode number of the namespace that --netns asks for, 0 without it."""
    return network_namespace(settings["netns"]) if settings.get("netns") else 0


def checked(tool: Tool, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return with_devices(); UsageError also if the network namespace does not exist."""
    netns = netns_of(settings)
    if settings.get("by") and tool.aggregation and not tool.has_events(settings):
        raise UsageError(
            f"--by counts events, and --{tool.events_unless} emits none", "leave one out"
        )
    if tool.aggregation:
        _check_rows(tool.aggregation, settings)
    if netns and not missing_privileges() and not is_namespace(netns):
        if lacks(OF_PROCESS):
            raise privilege_error([OF_PROCESS])
        raise _no_namespace(settings["netns"])
    return with_devices(tool, settings)


def _check_rows(rows: Aggregation, settings: Mapping[str, Any]) -> None:
    """Raise UsageError for options of rows that the tool does not show."""
    counted = settings.get("by") or settings["summary"]
    if rows.event_option and settings[rows.event_option] and counted:
        raise UsageError("--events shows each event, --summary and --by count them", "give one")
    if settings["top"] or settings["sort"]:
        if settings.get("histogram"):
            raise UsageError(
                "--top and --sort are for rows, not for distributions",
                "add --summary" if rows.measure else "leave out --histogram",
            )
        if not counted:
            raise UsageError("--top and --sort are for rows", "add --summary or --by LIST")


def active_filters(tool: Tool, settings: Mapping[str, Any]) -> list[str]:
    """Return the filter options that were given, as on the command line."""
    given = []
    for option in tool.options:
        value = settings.get(option.name)
        if option.is_filter and value:
            given.append(
                option.flags[-1] if value is True else f"{option.flags[-1]} {_as_given(value)}"
            )
    return given


def _as_given(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(map(_as_given, value))
    if isinstance(value, float):
        return f"{value:.12g}"
    return "-".join(map(str, dict.fromkeys(value))) if isinstance(value, tuple) else str(value)


def with_devices(tool: Tool, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings with network devices by their current names.

    A device can be given by an alternative name. UsageError if no traced namespace has it.
    """
    resolved = dict(settings)
    for option in tool.options if not missing_privileges() else ():
        if option.parse is devices and settings.get(option.name):
            resolved[option.name] = _devices(option, settings)
    return resolved


def _devices(option: Option, settings: Mapping[str, Any]) -> list[str]:
    from netbpf.kernel.devices import all_devices, device_names

    names: set[str] = set()
    for word in settings[option.name]:
        known = device_names(word, netns_of(settings))
        if not known:
            if any(map(lacks, (OF_DEVICES, OF_PROCESS))):
                raise privilege_error([need for need in (OF_DEVICES, OF_PROCESS) if lacks(need)])
            existing = ", ".join(all_devices(netns_of(settings))[:_MAX_NAMES])
            raise UsageError(
                f"{option.flags[-1]}: there is no network device '{word}'", f"devices: {existing}"
            )
        names |= known
    return sorted(names)


def may_pass(pid: int, name: str, settings: Mapping[str, Any]) -> bool:
    """Return whether a lookup of the process could pass -p and --comm.

    Each thread has its own name.
    """
    if settings.get("pid") and pid not in settings["pid"]:
        return False
    pattern = settings.get("comm")
    if not pattern or fnmatch.fnmatchcase(name, pattern):
        return True
    with suppress(OSError):
        threads = os.listdir(f"/proc/{pid}/task")
        if len(threads) > _MAX_THREADS:
            return True
        names = (read_text(f"/proc/{pid}/task/{thread}/comm", 64).strip() for thread in threads)
        return any(fnmatch.fnmatchcase(one, pattern) for one in names)
    return False


def network_namespace(word: str, proc: str = "/proc") -> int:
    """Return the inode number of a network namespace given by pid, name, path or inode number.

    UsageError if there is none, or if a number is both the name of one and a process in another.
    """
    if "\0" in word or word in (".", ".."):
        raise _no_namespace(word)
    named = _namespace_file(word if word.startswith("/") else f"{NAMED}/{word}", proc)
    if not re.fullmatch(r"[0-9]{1,10}", word):
        if named and (word.startswith("/") or "/" not in word):
            return named
        raise _no_namespace(word)
    of_process = namespace_of(f"{proc}/{word}")
    if named and of_process and named != of_process:
        raise UsageError(
            f"--netns: {word} is the name of a namespace and the id of a process in another one",
            f"give {NAMED}/{word}, or {of_process}, the inode number of the process's namespace",
        )
    number = int(word)
    if named or of_process:
        return named or of_process
    if _FIRST_NAMESPACE <= number < 2**32:
        return number
    if os.path.isdir(f"{proc}/{word}/ns") and lacks(OF_PROCESS):
        raise privilege_error([OF_PROCESS])
    raise _no_namespace(word)


def _namespace_file(path: str, proc: str) -> int:
    # `ip netns` leaves a plain file behind if it fails.
    with suppress(OSError):
        status = os.stat(path)
        kind = os.stat(f"{proc}/self/ns/net").st_dev
        if S_ISREG(status.st_mode) and status.st_dev == kind:
            return status.st_ino
    return 0


def _no_namespace(word: str) -> UsageError:
    return UsageError(
        f"--netns: there is no process, namespace or inode '{word}'", "namespaces: lsns -t net"
    )
