"""Who talks in the tests of TCP tools: clients in one namespace, servers in another."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import topology
import traffic
from harness import Json, Run
from topology import Host
from traffic import ENDS, FAMILIES, Line, Peer, Session

CONTAINER = "5eed" * 16  # a container id: 64 hexadecimal digits
NOBODY = 65534
# Without timeouts, which take a second, and half-closed sessions, which take 40 ms each.
QUICK_ENDS = tuple(end for end in ENDS if end not in ("timeout", "client-half"))


class Crowd(NamedTuple):
    """Two clients, one of them under another user and in a container; a server for each."""

    left: Host
    right: Host
    root: Peer
    nobody: Peer
    servers: tuple[Peer, Peer]
    cgroup: Path  # that of the client which is in a container

    @property
    def pairs(self) -> list[tuple[Peer, Peer]]:
        """Each client with its server."""
        return [(self.root, self.servers[0]), (self.nobody, self.servers[1])]

    def port(self, server: int, family: str) -> int:
        """The port on which a server waits for clients of this family."""
        return self.servers[server].listeners[family][1]

    def connect(self, family: str = "ipv4") -> Session:
        """Open a session of the first client."""
        return traffic.connect(*self.pairs[0], family)

    def play(self, number: int, ends: tuple[str, ...] = QUICK_ENDS, **words: Any) -> list[Session]:
        """Make that many sessions, with all these ends among them."""
        return traffic.play(traffic.plans(number, ends), self.pairs, self.right, **words)

    def ours(self, found: list[Json]) -> list[Json]:
        """Those in our namespaces: the rest of the machine may be talking, too."""
        namespaces = (self.left.inode, self.right.inode)
        return [event for event in found if event["netns"] in namespaces]

    def filters(self) -> dict[tuple[object, ...], Callable[[Line], bool]]:
        """The filters of processes, sockets and namespaces: words, and the lines that pass."""
        plain, other = self.servers
        port = self.port(0, "ipv4")
        return {
            ("-p", self.root.pid): lambda line: line.pid == self.root.pid,
            ("-p", f"{plain.pid},{other.pid}"): lambda line: line.pid in (plain.pid, other.pid),
            ("--comm", "nb-server-t*"): lambda line: line.pid == other.pid,
            ("--uid", NOBODY): lambda line: line.pid == self.nobody.pid,
            ("--cgroup", self.cgroup): lambda line: line.pid == self.nobody.pid,
            ("--container", CONTAINER[:12]): lambda line: line.pid == self.nobody.pid,
            ("--netns", self.left.inode): lambda line: line.comm.startswith("nb-client"),
            ("-L", port): lambda line: line.lport == port,
            ("-D", port): lambda line: line.rport == port,
            ("-4",): lambda line: line.family == "ipv4",
            ("-6",): lambda line: line.family == "ipv6",
            ("--laddr", f"{self.left.ipv4}/32"): lambda line: line.laddr == self.left.ipv4,
            ("--raddr", f"{self.left.ipv6}/128"): lambda line: line.raddr == self.left.ipv6,
        }

    def lines(self, run: Run) -> Counter[Line]:
        """What the run says about sessions of ours that ended."""
        return Counter(map(Line.of, self.ours(run.events)))


@contextlib.contextmanager
def gathered(left: Host, right: Host) -> Iterator[Crowd]:
    """Start everybody, for the time of the block."""
    with topology.cgroup(f"docker-{CONTAINER}.scope") as cgroup, traffic.peers() as start:
        root = start("nb-client-root", left)
        nobody = start("nb-client-other", left, uid=NOBODY, cgroup=cgroup)
        servers = (start("nb-server-one", right), start("nb-server-two", right))
        for server in servers:
            for family in FAMILIES:
                server.listen(family)
        yield Crowd(left, right, root, nobody, servers, cgroup)
