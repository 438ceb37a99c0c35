"""The tools that are measured beside each other: netbpf's, an empty one, and those of others."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

PLAIN, NOTHING, ALL = "plain", "filtered to nothing", "filtered to all"
VARIANTS = (PLAIN, NOTHING, ALL)
NETBPF, FLOOR, BCC, LIBBPF, BPFTRACE, BOOK = (
    "netbpf", "empty programs", "bcc", "libbpf-tools", "bpftrace", "the book",
)  # fmt: skip
PORT, IDLE_DEVICE = 4711, "nb-idle"
# No package has the book's scripts: copy them to this directory, where the tests find them as well.
_BOOK = Path(__file__).resolve().parent.parent / "tests/live/book"

# Options that exclude all of the traffic, and that all of it passes; {pid} is who makes it.
_PID = (("-p", "1"), ("-p", "{pid}"))
_PORT = (("-L", "1"), ("-L", str(PORT)))
_DEVICE = (("-i", IDLE_DEVICE), ("-i", "lo"))

Filter = tuple[tuple[str, ...], tuple[str, ...]]


class Contestant(NamedTuple):
    """A tool: whose it is, and the words of each variant; `ready` is the option of a ready file.

    `missing` says why it cannot run, "" if its program is there.
    """

    suite: str
    variants: Mapping[str, tuple[str, ...]]
    ready: str = ""
    missing: str = ""


class _Peer(NamedTuple):
    suite: str
    name: str
    filter: Filter | None = None


# netbpf's tool -> the peers that answer the same question.
_PEERS: dict[str, tuple[_Peer, ...]] = {
    "gethostlatency": (
        _Peer(BCC, "gethostlatency", _PID),
        _Peer(LIBBPF, "gethostlatency", _PID),
        _Peer(BPFTRACE, "gethostlatency"),
        _Peer(BOOK, "gethostlatency"),
    ),
    "netsize": (_Peer(BOOK, "netsize"),),
    "skbdrop": (_Peer(BCC, "tcpdrop"), _Peer(BPFTRACE, "tcpdrop"), _Peer(BOOK, "skbdrop")),
    "soaccept": (
        _Peer(BCC, "tcpaccept", _PID),
        _Peer(BPFTRACE, "tcpaccept"),
        _Peer(BOOK, "soaccept"),
    ),
    "socksize": (_Peer(BOOK, "socksize"),),
    "sockstat": (_Peer(BOOK, "sockstat"),),
    "soconnect": (
        _Peer(BCC, "tcpconnect", _PID),
        _Peer(LIBBPF, "tcpconnect", _PID),
        _Peer(BPFTRACE, "tcpconnect"),
        _Peer(BOOK, "soconnect"),
    ),
    "tcplife": (
        _Peer(BCC, "tcplife", _PID),
        _Peer(LIBBPF, "tcplife", _PID),
        _Peer(BPFTRACE, "tcplife"),
        _Peer(BOOK, "tcplife"),
    ),
    "tcpnagle": (_Peer(BOOK, "tcpnagle"),),
    "tcpretrans": (
        _Peer(BCC, "tcpretrans"),
        _Peer(BPFTRACE, "tcpretrans"),
        _Peer(BOOK, "tcpretrans"),
    ),
    "tcprtt": (_Peer(BCC, "tcprtt"), _Peer(LIBBPF, "tcprtt")),
    "tcpstates": (
        _Peer(BCC, "tcpstates", _PORT),
        _Peer(LIBBPF, "tcpstates", _PORT),
    ),
    "tcpsynbl": (
        _Peer(BCC, "tcpsynbl"),
        _Peer(LIBBPF, "tcpsynbl"),
        _Peer(BPFTRACE, "tcpsynbl"),
        _Peer(BOOK, "tcpsynbl"),
    ),
    "tcptop": (_Peer(BCC, "tcptop", _PID), _Peer(LIBBPF, "tcptop", _PID)),
}
# Words of netbpf's tools that make them do what is measured.
_WORDS = {"skbdrop": ("--events",), "netsize": ("1",), "sockstat": ("1",)}


def contestants(tool: str, options: set[str], netbpf: tuple[str, ...]) -> list[Contestant]:
    """Return netbpf's tool, its floor and its peers; `options` are the flags that the tool has.

    The floor has the same probes and maps, and programs that return at once.
    """
    filters = next((f for f in (_PID, _DEVICE, _PORT) if f[0][0] in options), None)
    own = _variants((tool, *_WORDS.get(tool, ())), filters)
    floor = {PLAIN: ("/usr/bin/python3", "-m", "bench.floor", *own[PLAIN])}
    called = {name: (*netbpf, *words) for name, words in own.items()}
    found = [Contestant(NETBPF, called, "--ready-file"), Contestant(FLOOR, floor, "--ready-file")]
    return found + [_found(peer) for peer in _PEERS.get(tool, ())]


def _variants(command: tuple[str, ...], filters: Filter | None) -> dict[str, tuple[str, ...]]:
    if not filters:
        return {PLAIN: command}
    return {PLAIN: command, NOTHING: (*command, *filters[0]), ALL: (*command, *filters[1])}


def _found(peer: _Peer) -> Contestant:
    candidates = {
        BCC: (f"/usr/sbin/{peer.name}-bpfcc", f"/usr/share/bcc/tools/{peer.name}"),
        LIBBPF: (f"/usr/sbin/{peer.name}", f"/usr/sbin/bpf-{peer.name}"),
        BPFTRACE: (f"/usr/sbin/{peer.name}.bt", f"/usr/share/bpftrace/tools/{peer.name}.bt"),
        BOOK: (str(_BOOK / f"{peer.name}.bt"),),
    }[peer.suite]
    path = next((path for path in candidates if Path(path).exists()), "")
    script = peer.suite in (BPFTRACE, BOOK)
    if not path or (script and not shutil.which("bpftrace")):
        where = "no package has the book's scripts" if peer.suite == BOOK else "make setup-bench"
        return Contestant(peer.suite, {PLAIN: ()}, missing=f"{peer.name} is not installed: {where}")
    start = {BCC: ("/usr/bin/python3", "-u", path), LIBBPF: (path,)}.get(
        peer.suite, ("bpftrace", path)
    )
    return Contestant(peer.suite, _variants(start, peer.filter))
