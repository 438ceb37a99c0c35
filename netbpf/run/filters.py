"""Options -> C: which events the BPF program lets through.

Only validated numbers are written into C. A name (of a process, a user, a container) never is: it
is looked up here, or becomes an automaton of character codes.
"""

from __future__ import annotations

import ipaddress
import os
import pwd
import re
import struct
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from netbpf.declare.numbers import at_load, in_ranges, one_of
from netbpf.declare.options import Network
from netbpf.errors import UsageError
from netbpf.kernel.cgroups import cgroup_id, container_cgroup

_FIRST_NAMESPACE = 0xEFFFFFF8  # inode numbers of namespaces start above: PROC_UTS_INIT_INO etc.


def filter_defines(settings: Mapping[str, Any], proc: str = "/proc") -> list[str]:
    """Return the C lines for the filters in `settings`; raise UsageError for what is not there."""
    lines = []
    if settings.get("pid"):
        pids = [_existing(pid, proc) for pid in settings["pid"]]
        lines.append(f"#define FILTER_PID(x) {one_of('x', pids)}")
    if settings.get("uid"):
        uids = [_user(word) for word in settings["uid"].split(",")]
        lines.append(f"#define FILTER_UID(x) {one_of('x', uids)}")
    if settings.get("comm"):
        lines += comm_automaton(settings["comm"])
    cgroup = _cgroup(settings)
    if cgroup:
        lines.append(f"#define FILTER_CGROUP {at_load(cgroup)}")
    if settings.get("netns"):
        netns = network_namespace(settings["netns"], proc)
        lines.append(f"#define FILTER_NETNS {at_load(netns)}")
    return [*lines, *_socket_defines(settings)]


def _socket_defines(settings: Mapping[str, Any]) -> Iterator[str]:
    if settings.get("ipv4") and settings.get("ipv6"):
        raise UsageError("-4 and -6 exclude each other", "leave both out to see both")
    if settings.get("ipv4") or settings.get("ipv6"):
        yield f"#define FILTER_FAMILY {'AF_INET' if settings['ipv4'] else 'AF_INET6'}"
    for side in ("lport", "rport"):
        if settings.get(side):
            yield f"#define FILTER_{side.upper()}(x) {in_ranges('x', settings[side])}"
    for side in ("laddr", "raddr"):
        if settings.get(side):
            yield f"#define FILTER_{side.upper()} {block_words(settings[side])}"


def block_words(block: Network) -> str:
    """Return an address block as four words for in_block(): network and mask, as in memory."""
    mapped = b"\0" * 10 + b"\xff\xff" if isinstance(block, ipaddress.IPv4Network) else b""
    network = mapped + block.network_address.packed
    mask = (b"\xff" * 12 if mapped else b"") + block.netmask.packed
    return ", ".join(map(at_load, struct.unpack("=4Q", network + mask)))


def comm_automaton(glob: str) -> list[str]:
    """Return the constants of the bit-parallel automaton in filter.bpf.h for a glob.

    The pattern is `fnmatch`'s: *, ?, [abc], [a-z], [!abc]. Bit k of TOKENS(c) is set if the k-th
    token matches the character c, bit k of STARS if a star stands before the k-th token.
    """
    tokens: list[str] = []
    stars = 0
    for part in re.findall(r"\[(?:!.|[^!])[^\]]*\]|.", glob, re.DOTALL):
        if part == "*":
            stars |= 1 << len(tokens)
        else:
            tokens.append(_token(part))
    shifted = " | ".join(f"(u32)({token}) << {i}" for i, token in enumerate(tokens))
    return [
        f"#define FILTER_COMM_TOKENS(c) ({shifted or 0})",
        f"#define FILTER_COMM_STARS {stars}U",
        f"#define FILTER_COMM_LENGTH {len(tokens)}",
    ]


def _token(part: str) -> str:
    if part == "?":
        return "1"
    if len(part) == 1:
        return f"(c) == {ord(part)}"
    inside, negated = part[1:-1], part[1] == "!"
    tests = [
        f"((c) >= {ord(first)} && (c) <= {ord(last or first)})"
        for first, last in re.findall(r"(.)(?:-(.))?", inside[1:] if negated else inside, re.DOTALL)
    ]
    joined = " || ".join(tests) or "0"
    return f"!({joined})" if negated else joined


def _existing(pid: int, proc: str) -> int:
    if not Path(proc, str(pid)).is_dir():
        raise UsageError(f"--pid: there is no process {pid}", "processes: ps -e")
    return pid


def _user(word: str) -> int:
    if re.fullmatch(r"[0-9]{1,10}", word) and int(word) < 2**32:
        return int(word)
    try:
        return pwd.getpwnam(word).pw_uid
    except (KeyError, ValueError):
        raise UsageError(f"--uid: there is no user '{word}'", "give a name or a number") from None


def _cgroup(settings: Mapping[str, Any]) -> int:
    if settings.get("cgroup") and settings.get("container"):
        raise UsageError("--cgroup and --container exclude each other", "give one of them")
    if settings.get("cgroup"):
        return cgroup_id(settings["cgroup"])
    return container_cgroup(settings["container"]) if settings.get("container") else 0


def netns_of(settings: Mapping[str, Any]) -> int:
    """Return the inode number of the namespace that --netns asks for, 0 without it."""
    return network_namespace(settings["netns"]) if settings.get("netns") else 0


def network_namespace(word: str, proc: str = "/proc") -> int:
    """Return the inode number of a network namespace given by pid, name or inode number."""
    # A process that has ended but was not waited for has no namespace any more.
    with suppress(OSError):
        if re.fullmatch(r"[0-9]{1,10}", word):
            if Path(proc, word).is_dir():
                return os.stat(f"{proc}/{word}/ns/net").st_ino
            if _FIRST_NAMESPACE <= int(word) < 2**32:
                return int(word)
        elif re.fullmatch(r"[^/\0]{1,255}", word) and word not in (".", ".."):
            return Path("/run/netns", word).stat().st_ino
    raise UsageError(
        f"--netns: there is no process, namespace or inode '{word}'", "namespaces: lsns -t net"
    )
