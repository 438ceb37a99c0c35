"""Do all ten tools, side by side, agree with what real programs report of themselves?

nginx with wrk and curl, redis with redis-benchmark, and iperf3, in a network namespace of the test;
getent beside them.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import harness
import pytest
from harness import ATTEMPTS, wait_until
from servers import NGINX, serving
from topology import Host

PROGRAMS = ("nginx", "wrk", "curl", "redis-server", "redis-benchmark", "iperf3", "getent")
MISSING = [name for name in PROGRAMS if not shutil.which(name)]
TOOLS = ("tcplife", "soconnect", "soaccept", "sockstat", "tcpretrans", "tcpsynbl", "tcpnagle",
         "netsize", "skbdrop")  # fmt: skip
ALL = (*TOOLS, "gethostlatency")
CURLS, SETS, OCTETS, COOKIE = 5, 1009, 10 << 20, 37  # iperf3 sends a cookie ahead of its data

pytestmark = pytest.mark.skipif(
    bool(MISSING), reason=f"needs {', '.join(MISSING)}: scripts/setup.sh test"
)


def requests_of_wrk(host: Host) -> int:
    said = host.run("wrk", "-t1", "-c7", "-d1s", "http://127.0.0.1:8080/")
    return int(re.search(r"(\d+) requests in", said)[1])  # type: ignore[index]


def transfer_of_iperf3(host: Host) -> tuple[int, int]:
    said = json.loads(host.run("iperf3", "-c", "127.0.0.1", "-p", 5201, "-n", OCTETS, "-J"))
    end = said["end"]
    return int(end["sum_sent"]["bytes"]), int(end["sum_received"]["bytes"])


@pytest.fixture(scope="module")
def seen(one_host: Host, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Run all programs once beside all tools."""
    for _ in range(ATTEMPTS):
        found = watched(one_host, tmp_path_factory.mktemp("real"))
        if not any(lost_of(found, tool)["probe_missed"] for tool in ALL):
            break
    return found


def lost_of(seen: dict[str, Any], tool: str) -> dict[str, int]:
    return dict(seen[tool].summary["lost"])


def watched(one_host: Host, directory: Path) -> dict[str, Any]:
    (directory / "nginx.conf").write_text(NGINX.format(dir=directory))

    def netbpf(tool: str, *words: object) -> Any:
        (directory / tool).mkdir()
        return harness.running(directory / tool, tool, *words)

    found: dict[str, Any] = {}
    with contextlib.ExitStack() as stack:
        stack.enter_context(
            serving(one_host, 8080, "nginx", "-c", directory / "nginx.conf", "-p", directory)
        )
        redis = ("redis-server", "--port", 6379, "--bind", "127.0.0.1", "--save", "", "--dir")
        stack.enter_context(serving(one_host, 6379, *redis, directory))
        stack.enter_context(serving(one_host, 5201, "iperf3", "-s"))
        with contextlib.ExitStack() as tools:
            options = {"tcplife": ("--buffer", "4m"), "sockstat": ("--comm", "nginx")}
            for tool in TOOLS:
                words = ("--netns", one_host.inode, *options.get(tool, ()))
                found[tool] = tools.enter_context(netbpf(tool, *words))
            found["gethostlatency"] = tools.enter_context(
                netbpf("gethostlatency", "--comm", "getent")
            )
            before = one_host.snmp()
            found["requests"] = requests_of_wrk(one_host)
            for _ in range(CURLS):
                one_host.run("curl", "-s", "http://127.0.0.1:8080/")
            bench = ("redis-benchmark", "-p", 6379, "-c", 5, "-n", SETS, "-t", "set", "-q")
            one_host.run(*bench)
            found["octets"] = transfer_of_iperf3(one_host)
            subprocess.run(["getent", "ahosts", "localhost"], check=True, capture_output=True)
            wait_until(lambda: one_host.snmp()["TcpCurrEstab"] == 0, what="all sessions to be over")
            after = one_host.snmp()
        found["rise"] = {name: after[name] - before[name] for name in after}
    return found


def test_nothing_is_lost_while_all_tools_run_side_by_side(seen: dict[str, Any]) -> None:
    lost = {tool: lost_of(seen, tool) for tool in ALL}
    assert {tool: causes for tool, causes in lost.items() if any(causes.values())} == {}


def test_connections_are_those_of_the_kernel_at_both_ends(seen: dict[str, Any]) -> None:
    opened = seen["rise"]["TcpActiveOpens"]
    assert opened == seen["rise"]["TcpPassiveOpens"] >= 7 + CURLS + 5 + 2
    made = [event for event in seen["soconnect"].events if event["result"] == "OK"]
    taken = [event for event in seen["soaccept"].events if event["result"] == "OK"]
    roles = [event["role"] for event in seen["tcplife"].events]
    assert len(made) == len(taken) == opened
    assert roles.count("active") == roles.count("passive") == opened
    handshakes = sum(h["count"] for h in seen["tcpsynbl"].histograms)
    assert handshakes == opened


def test_sends_of_nginx_are_the_requests_of_wrk_and_curl(seen: dict[str, Any]) -> None:
    rows = [row for row in seen["sockstat"].rows if row["op"] == "send"]
    sends = sum(row["calls"] for row in rows if row["proto"] == "tcp4")
    # wrk does not count the requests that are on their way when its time is up, one per connection.
    assert 0 <= sends - seen["requests"] - CURLS <= 7


def test_bytes_are_those_of_iperf3(seen: dict[str, Any]) -> None:
    ends = [event for event in seen["tcplife"].events if event["comm"] == "iperf3"]
    sent = max(event["tx_bytes"] for event in ends if event["role"] == "active")
    received = max(event["rx_bytes"] for event in ends if event["role"] == "passive")
    assert sent == seen["octets"][0] + COOKIE
    # The server closes when it is told that the time is up, with what it has read until then.
    assert seen["octets"][1] + COOKIE <= received <= sent


def test_sessions_belong_to_the_programs_that_had_them(seen: dict[str, Any]) -> None:
    comms = {(event["comm"], event["role"]) for event in seen["tcplife"].events}
    servers = {(name, "passive") for name in ("nginx", "redis-server", "iperf3")}
    clients = {(name, "active") for name in ("wrk", "curl", "redis-benchmark", "iperf3")}
    assert {(comm[:15], role) for comm, role in comms} == {
        (comm[:15], role) for comm, role in servers | clients
    }
    assert {event["owner"] for event in seen["tcplife"].events} == {"exact"}


def test_retransmissions_are_those_of_the_kernel(seen: dict[str, Any]) -> None:
    shown = sum(e["segs"] for e in seen["tcpretrans"].events if e["kind"] != "FAILED")
    failed = seen["rise"]["TcpExtTCPRetransFail"]
    assert shown + failed == seen["rise"]["TcpRetransSegs"]


def test_a_machine_without_trouble_shows_none(seen: dict[str, Any]) -> None:
    assert [row for row in seen["skbdrop"].rows if row["reason"] == "NO_SOCKET"] == []
    assert {row["dropped"] for row in seen["tcpsynbl"].rows} <= {0}
    assert [event["result"] for event in seen["gethostlatency"].events] == ["OK"]
