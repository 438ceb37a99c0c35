"""Stacks as a column and as a key: the functions that the test's own programs called."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import topology
from bpf_maps import keys_of
from compared import compares
from conftest import Netbpf
from harness import SLOW, TIMEOUT, Json, netbpf_once, wait_until
from topology import Host

from netbpf.kernel.inspect import LiveKernel

PROGRAMS = Path(__file__).parent / "programs"
COMM = "nb-dial"  # all programs of this module have this name
BUILDS = {
    "with frame pointers": ("gcc", "-O1", "-fno-omit-frame-pointer"),
    "without frame pointers": ("gcc", "-O2", "-fomit-frame-pointer"),
    "static": ("gcc", "-O2", "-static", "-w"),
    "position dependent": ("gcc", "-O2", "-no-pie"),
}
NOBODY = 65534
OURS = ["dial", "outer", "main"]


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """The port of a listener that accepts and closes."""
    with socket.create_server(("127.0.0.1", 0), backlog=512) as listener:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    listener.accept()[0].close()

        threading.Thread(target=serve, daemon=True).start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)


def built(directory: Path, *compiler: str) -> Path:
    """Compile the program; skip if there is no such compiler."""
    if not shutil.which(compiler[0]):
        pytest.skip(f"no {compiler[0]} here: apt install {compiler[0]}")
    path = directory / COMM
    topology.must(*compiler, "-o", path, PROGRAMS / "dial.c", timeout=90 * SLOW)
    return path


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(tmp_path_factory.mktemp("dial"), *BUILDS["without frame pointers"])


@contextlib.contextmanager
def dialling(
    program: object, port: int, *words: object, **options: Any
) -> Iterator[subprocess.Popen[bytes]]:
    """Run the program, which waits after its calls until the block ends."""
    line = list(map(str, [program, port, *words]))
    with subprocess.Popen(line, stdin=subprocess.PIPE, **options) as process:
        try:
            yield process
        finally:
            assert process.stdin
            process.stdin.close()
            assert process.wait(TIMEOUT) == 0


def begin(process: subprocess.Popen[bytes]) -> None:
    """Let a program that was started with "late" make its calls."""
    assert process.stdin
    process.stdin.write(b"+")
    process.stdin.flush()


def idle(pid: int) -> bool:
    """Return whether the program has made its calls: it waits for its standard input."""
    return Path(f"/proc/{pid}/wchan").read_text().endswith("pipe_read")


def functions(event: Json) -> list[str | None]:
    return [frame["function"] for frame in event["stack"]]


def ours(event: Json) -> list[str | None]:
    """The functions after connect(), as many as there are of the program's own."""
    names = functions(event)
    return names[1 : 1 + len(OURS)]


def children(pid: int) -> list[int]:
    """All descendants of a process."""
    found = []
    for thread in Path(f"/proc/{pid}/task").iterdir():
        for child in map(int, (thread / "children").read_text().split()):
            found += [child, *children(child)]
    return found


@contextlib.contextmanager
def frozen(pid: int) -> Iterator[None]:
    """Stop the processes that the tool has started, within the block."""
    stopped = children(pid)
    assert stopped
    for child in stopped:
        os.kill(child, signal.SIGSTOP)
    try:
        yield
    finally:
        for child in stopped:
            os.kill(child, signal.SIGCONT)


def build_id(path: Path) -> str:
    """The build id as readelf finds it."""
    text = topology.must("readelf", "-n", path)
    return text.partition("Build ID: ")[2].split()[0]


# --- what is unwound ------------------------------------------------------------------------------


@compares("soconnect", "stack", "stack_end")
@pytest.mark.parametrize("name", BUILDS)
def test_stack_has_the_functions_of_the_program(
    netbpf: Netbpf, port: int, tmp_path: Path, name: str
) -> None:
    path = built(tmp_path, *BUILDS[name])
    with netbpf("soconnect", "--stack", "--comm", COMM) as run:
        with dialling(path, port, 3, "one"):
            run.wait_for(3)
    for event in run.events:
        assert functions(event)[0] in ("connect", "__connect", "__libc_connect")
        assert ours(event) == OURS
        assert functions(event)[-1] == "_start"
        assert event["stack_end"] == "complete"
        for frame in event["stack"][1:4]:
            assert (frame["file"], frame["build_id"]) == (str(path), build_id(path))
            assert 0 < frame["offset"] < 4096


@pytest.mark.parametrize("words", [("-static",), ("-static", "-fno-omit-frame-pointer")])
def test_musl_has_no_unwind_tables(
    netbpf: Netbpf, port: int, tmp_path: Path, words: tuple[str, ...]
) -> None:
    """Its connect() has no frame and no table: its caller is missing, and the end says so."""
    path = built(tmp_path, "musl-gcc", "-O2", *words)
    with netbpf("soconnect", "--stack", "--comm", COMM) as run:
        with dialling(path, port, 2, "one"):
            run.wait_for(2)
    for event in run.events:
        assert event["stack_end"] == "no-unwind"
        assert event["stack"][0]["file"] == str(path)
        if len(words) > 1:
            assert "outer" in functions(event) and "main" in functions(event)


def test_go_has_frame_pointers(netbpf: Netbpf, port: int, tmp_path: Path) -> None:
    go = shutil.which("go") or shutil.which("/usr/local/go/bin/go")
    if not go:
        pytest.skip("no go here: apt install golang")
    environment = {
        **os.environ, "CGO_ENABLED": "0", "GOFLAGS": "-buildvcs=false", "GO111MODULE": "off",
        "GOCACHE": str(tmp_path / "cache"), "GOTOOLCHAIN": "local",
    }  # fmt: skip
    path = tmp_path / COMM
    topology.must(
        go, "build", "-o", path, PROGRAMS / "dial.go", env=environment, timeout=300 * SLOW
    )
    with netbpf("soconnect", "--stack", "--comm", COMM) as run:
        with dialling(path, port, 2):
            run.wait_for(2)
    for event in run.events:
        names = functions(event)
        assert names[0] and names[0].startswith(("runtime/internal/syscall.", "internal/runtime/"))
        first = names.index("main.dial")
        assert names[first : first + 4] == ["main.dial", "main.outer", "main.main", "runtime.main"]
        assert event["stack_end"] == "no-unwind"
        assert {frame["file"] for frame in event["stack"]} == {str(path)}


def test_stripped_programs_are_unwound_to_their_start(
    netbpf: Netbpf, port: int, tmp_path: Path
) -> None:
    path = built(tmp_path, "gcc", "-O2", "-s")
    with netbpf("soconnect", "--stack", "--comm", COMM) as run:
        with dialling(path, port, 1, "one"):
            (event,) = run.wait_for(1)
    assert event["stack_end"] == "complete"
    assert functions(event)[0] == "connect" and ours(event) == [None] * 3
    addresses = [frame["offset"] for frame in event["stack"][1:4]]
    assert len(set(addresses)) == 3 and {frame["file"] for frame in event["stack"][1:4]} == {
        str(path)
    }


@pytest.mark.parametrize("words", [("python3", "PyEval_EvalCode"), ("curl", "curl_easy_perform")])
def test_programs_of_the_system_are_unwound(
    netbpf: Netbpf, port: int, words: tuple[str, str]
) -> None:
    name, function = words
    path = Path("/usr/bin") / name
    if not path.exists():
        pytest.skip(f"no {path} here: apt install {name}")
    code = f"import socket, time; socket.create_connection(('127.0.0.1', {port})); time.sleep(9)"
    lines = {"python3": [path, "-c", code], "curl": [path, "-s", f"http://127.0.0.1:{port}/"]}

    def known(events: list[Json]) -> bool:
        return any(function in functions(event) for event in events if event["stack"])

    with netbpf("soconnect", "--stack", "--comm", f"{name}*") as run:
        end = time.monotonic() + TIMEOUT
        while not known(run.events) and time.monotonic() < end:  # curl may end too early
            with subprocess.Popen(lines[name]) as process:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(1)
                process.kill()
    event = next(event for event in run.events if function in functions(event))
    assert event["stack_end"] == "complete" and functions(event)[0] == "connect"
    assert len(event["stack"]) > 9


def test_stack_deeper_than_the_copy_is_cut(netbpf: Netbpf, port: int, program: Path) -> None:
    with netbpf("soconnect", "--stack", "--comm", COMM) as run:
        with dialling(program, port, 2, "deep", 40), dialling(program, port, 1, "deep", 5):
            run.wait_for(3)
    cut = [event for event in run.events if event["stack_end"] == "cut"]
    (whole,) = (event for event in run.events if event["stack_end"] == "complete")
    assert len(cut) == 2 and functions(whole).count("dig") == 6
    for event in cut:
        assert functions(event)[:4] == ["connect", "dial", "outer", "dig"]
        assert set(functions(event)[4:]) == {"dig"}
        assert 10 < functions(event).count("dig") < 41


def test_damaged_unwind_table_gives_no_frames_and_no_error(
    netbpf: Netbpf, port: int, tmp_path: Path
) -> None:
    path = built(tmp_path, *BUILDS["without frame pointers"])
    garbage = tmp_path / "garbage"
    size = len(section(path, ".eh_frame", tmp_path))
    garbage.write_bytes(bytes(range(1, 252)) * (size // 251 + 1))
    topology.must("objcopy", "--update-section", f".eh_frame={garbage}", path)
    with netbpf("soconnect", "--stack", "--comm", COMM) as run:
        with dialling(path, port, 2, "one"):
            run.wait_for(2)
    for event in run.events:
        assert event["stack_end"] == "no-unwind"
        assert functions(event)[:2] == ["connect", "dial"] and "main" not in functions(event)
    assert run.summary["complete"]


def section(path: Path, name: str, directory: Path) -> bytes:
    copy = directory / "section"
    topology.must("objcopy", "-O", "binary", "--only-section", name, path, copy)
    return copy.read_bytes()


# --- where the files are --------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["with frame pointers", "without frame pointers"])
def test_names_survive_the_process(netbpf: Netbpf, port: int, tmp_path: Path, name: str) -> None:
    """Of a process that has ended unseen, frame pointers show the functions."""
    path = built(tmp_path, *BUILDS[name])
    with netbpf("soconnect", "--stack", "--comm", COMM) as run:
        with frozen(run.process.pid), dialling(path, port, 1, "one"):
            pass
        (event,) = run.wait_for(1)
    assert event["stack_end"] == "no-unwind"
    if LiveKernel().enumerator("bpf_func_id", "BPF_FUNC_get_current_task_btf") is None:
        assert functions(event) == [None]  # before 5.11: no build ids
        return
    assert functions(event)[0] == "connect"
    assert event["stack"][0]["build_id"] and event["stack"][0]["file"].endswith("libc.so.6")
    if name == "with frame pointers":  # libc's connect() has none: its caller is missing
        assert functions(event)[1:3] == ["outer", "main"]
        assert event["stack"][1]["build_id"] == build_id(path)
        assert event["stack"][1]["file"].endswith(path.name)


def test_deleted_program_has_names(netbpf: Netbpf, port: int, tmp_path: Path) -> None:
    path = built(tmp_path, *BUILDS["without frame pointers"])
    with netbpf("soconnect", "--stack", "--comm", COMM) as run:
        with dialling(path, port, 1, "one", "late") as process:
            started = wait_until(lambda: os.readlink(f"/proc/{process.pid}/exe") == str(path))
            assert started
            path.unlink()
            begin(process)
            (event,) = run.wait_for(1)
    assert ours(event) == OURS and event["stack_end"] == "complete"
    assert event["stack"][1]["file"] == f"{path} (deleted)"


def test_program_in_another_mount_namespace_has_names(
    netbpf: Netbpf, port: int, program: Path, tmp_path: Path
) -> None:
    place = tmp_path / "apart"
    place.mkdir()
    inside = place / COMM
    script = f"mount -t tmpfs none {place} && cp {program} {inside} && exec {inside} {port} 2 one"
    with netbpf("soconnect", "--stack", "--comm", COMM) as run:
        line = ["unshare", "--mount", "sh", "-c", script]
        with subprocess.Popen(line, stdin=subprocess.PIPE) as process:
            run.wait_for(2)
            assert not inside.exists(), "the file is visible here"
            assert process.stdin
            process.stdin.close()
    for event in run.events:
        assert ours(event) == OURS and event["stack_end"] == "complete"
        assert event["stack"][1]["file"] == str(inside)


# --- code that is compiled while a program runs ---------------------------------------------------


def test_perf_map_names_compiled_code(netbpf: Netbpf, port: int, program: Path) -> None:
    with netbpf("soconnect", "--stack", "--comm", COMM) as run:
        with dialling(program, port, 1, "jit") as process:
            (event,) = run.wait_for(1)
            perf_map(process.pid).unlink()
    assert functions(event)[:6] == [
        "connect", "dial", "outer", "js:made_by_test", "compiled", "main",
    ]  # fmt: skip
    assert event["stack_end"] == "no-unwind"  # frame pointers led through the compiled code


@pytest.fixture
def open_program(program: Path) -> Iterator[Path]:
    """The program where another user can execute it."""
    with tempfile.TemporaryDirectory(dir="/tmp") as directory:
        Path(directory).chmod(0o755)
        yield Path(shutil.copy(program, directory))


def test_perf_map_of_another_user_is_not_believed(
    netbpf: Netbpf, port: int, open_program: Path
) -> None:
    with netbpf("soconnect", "--stack", "--comm", COMM) as run:
        with dialling(open_program, port, 1, "jit", "late", user=NOBODY) as process:
            perf_map(process.pid).write_text("0 7fffffffffff forged\n")
            begin(process)
            (event,) = run.wait_for(1)
            perf_map(process.pid).unlink()
    assert functions(event)[:6] == ["connect", "dial", "outer", None, "compiled", "main"]


def perf_map(pid: int) -> Path:
    return Path(f"/tmp/perf-{pid}.map")


# --- as a key -------------------------------------------------------------------------------------


@compares("sockstat", "stack", "stack_end", shape="--by")
def test_calls_are_counted_by_stack(netbpf: Netbpf, port: int, program: Path) -> None:
    times = 23
    with netbpf("sockstat", "--op", "connect", "--comm", COMM, "--by", "comm,stack") as run:
        with dialling(program, port, times + 1, "two") as process:
            wait_until(lambda: idle(process.pid))
            time.sleep(0.2)  # for the last stack that was reported
    assert sum(row["calls"] for row in run.rows) == 3 * (times + 1)
    by_caller: dict[Any, int] = {}
    for row in run.rows:
        assert row["comm"] == COMM and row["pid"] is None
        assert row["stack_end"] == "complete" and functions(row)[:2] == ["connect", "dial"]
        by_caller[functions(row)[2]] = by_caller.get(functions(row)[2], 0) + row["calls"]
    assert by_caller == {"outer": times + 1, "other": 2 * (times + 1)}


def test_latencies_are_distributed_by_stack(netbpf: Netbpf, port: int, program: Path) -> None:
    times = 7
    words = ("soconnect", "--histogram", "latency_us", "--by", "comm,stack", "--comm", COMM)
    with netbpf(*words) as run, netbpf(*words, json_lines=False) as text:
        with dialling(program, port, times, "two") as process:
            wait_until(lambda: idle(process.pid))
            time.sleep(0.2)  # for the last stack that was reported
    found: dict[Any, int] = {}
    for histogram in run.histograms:
        key = histogram["key"]
        assert key["comm"] == COMM and key["stack_end"] == "complete"
        found[functions(key)[2]] = found.get(functions(key)[2], 0) + histogram["count"]
    assert found == {"outer": times, "other": 2 * times}
    head = text.stdout.split("\n\n")[-1].splitlines()
    assert head[0] == f"comm={COMM}" and [line.split("+")[0] for line in head[1:3]] == [
        "    connect", "    dial",
    ]  # fmt: skip


def test_more_stacks_than_are_copied_are_counted(netbpf: Netbpf, port: int, program: Path) -> None:
    times = 400
    with netbpf("sockstat", "--op", "connect", "--comm", COMM, "--by", "stack") as run:
        with frozen(run.process.pid):  # no rules arrive
            with dialling(program, port, times, "one") as process:
                wait_until(lambda: idle(process.pid))
    assert sum(row["calls"] for row in run.rows) == times
    ends = {row["stack_end"] for row in run.rows}
    assert "no-unwind" in ends
    (note,) = (note for note in run.summary["notes"] if "frame pointers only" in note)
    assert int(note.split()[0]) >= times // 2


@compares("skbdrop", "stack", shape="--by")
def test_drops_are_counted_by_kernel_stack(netbpf: Netbpf) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
        free.bind(("127.0.0.1", 0))
        nobody = free.getsockname()
    words = ("--by", "location,stack", "--port", nobody[1])
    with netbpf("skbdrop", *words) as run, netbpf("skbdrop", "--by", "reason", *words[2:]) as plain:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            for _ in range(13):
                sender.sendto(b"x", nobody)
    drops = [row for row in run.rows if row["stack"]]
    assert sum(row["count"] for row in run.rows) == 13 == sum(row["count"] for row in plain.rows)
    for row in drops:
        names = [frame.partition("+")[0] for frame in row["stack"]]
        assert row["stack"][0] == row["location"]
        assert "__sys_sendto" in names
    assert all(row["stack"] is None for row in plain.rows)


# --- without the option ---------------------------------------------------------------------------


def test_without_the_option_there_is_no_column_and_no_process(
    netbpf: Netbpf, port: int, program: Path
) -> None:
    with netbpf("soconnect", "--comm", COMM, "-v") as run:
        with dialling(program, port, 1, "one"):
            (event,) = run.wait_for(1)
    assert not {"stack", "stack_end"} & set(event)
    assert "stack_records" not in run.stderr and "mappings" not in run.stderr


@pytest.mark.parametrize("tool", ["tcplife", "netsize"])
def test_tool_without_stacks_refuses_the_key(netbpf: Netbpf, tool: str) -> None:
    done = netbpf_once(tool, "--by", "stack")
    assert done.returncode == 2 and ("stack" in done.stderr or "--by" in done.stderr)


def test_no_stack_is_copied_of_what_a_filter_excludes(netbpf: Netbpf, one_host: Host) -> None:
    """Each process whose stack was copied has an entry in the map of their rate."""
    with netbpf("soconnect", "--stack", "--netns", one_host.inode, "-D", 9) as run:
        for port, entries in ((7, 0), (9, 1)):
            with one_host.socket(socket.AF_INET, socket.SOCK_STREAM) as client:
                assert client.connect_ex(("127.0.0.1", port))
            with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as client:  # another namespace
                client.connect_ex(("127.0.0.1", port))
            assert len(keys_of(run, "copy_rates")) == entries
        run.wait_for(1)
    assert len(run.events) == 1
