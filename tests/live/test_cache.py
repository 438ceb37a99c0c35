"""What is kept of a start gives the same result in the next one; where nothing is kept, no harm."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import struct
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from crowd import QUICK_ENDS, Crowd
from harness import SOURCE_TREE, START_TIMEOUT, Run, command, netbpf_once, validator
from traffic import Line

from netbpf.bpf import type_answers
from netbpf.bpf.object import BpfObject, pack, unpack
from netbpf.declare.tool import tool_names
from netbpf.kernel.btf import Btf

pytestmark = pytest.mark.beside

NOBODY = 65534
SESSIONS = 23


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A place for a cache; nothing is there yet."""
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with what one start of tcplife keeps."""
    place = tmp_path_factory.mktemp("kept") / "cache"
    once(place)
    return place


@pytest.fixture
def used(kept: Path, place: Path) -> tuple[Path, str]:
    """A place for a cache with what one start of tcplife keeps, and its program's name there."""
    shutil.copytree(kept, place)
    (name,) = files(place)
    return place, name


def with_cache(place: object) -> dict[str, str]:
    return {**os.environ, "NETBPF_CACHE": str(place)}


def once(place: object, *words: object) -> subprocess.CompletedProcess[str]:
    """Run tcplife for a moment, which must work whatever there is of a cache."""
    done = netbpf_once(*(words or ("tcplife",)), "-d", "0.1", "--json", "-v", env=with_cache(place))
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["type"] == "summary"
    return done


def was_compiled(text: str) -> bool:
    """Tell which of the two a run says that it did; it must say just one of them."""
    compiled, taken = "netbpf: compiled in " in text, "netbpf: compiled programs taken" in text
    assert compiled is not taken, text
    return compiled


def files(place: Path) -> list[str]:
    """The names of all files but the one with the kernel's types, which all tools share."""
    return sorted(path.name for path in place.iterdir() if path.name != type_answers.file_name())


def test_second_start_takes_what_is_kept_and_sees_as_well_what_it_is_asked_for(
    netbpf: Any, crowd: Crowd, place: Path
) -> None:
    # What is compiled knows no namespace: each run must see its own side of the sessions only.
    runs: list[Run] = []
    for host, side in ((crowd.left, slice(0, 1)), (crowd.right, slice(1, 2))):
        words = ("--netns", host.inode, "-v")
        with netbpf("tcplife", *words, env=with_cache(place)) as run:
            sessions = crowd.play(SESSIONS, QUICK_ENDS)
            wanted = Counter(line for session in sessions for line in session.lines()[side])
            run.wait_for(sum(wanted.values()))
        assert sum(wanted.values()) >= SESSIONS // 2
        assert Counter(map(Line.of, run.events)) == wanted
        runs.append(run)
    assert [was_compiled(run.stderr) for run in runs] == [True, False]
    first, second = ({**run.summary} for run in runs)
    assert first["probes"] == second["probes"]
    assert second["complete"] is True and first["lost"] == second["lost"]
    assert len(files(place)) == 1


@pytest.mark.parametrize("tool", tool_names())
def test_every_tool_starts_from_the_cache(tool: str, place: Path) -> None:
    results = []
    for _ in range(2):
        done = netbpf_once(tool, "-d", "0.2", "--json", "-v", env=with_cache(place))
        if done.returncode == 69:
            pytest.skip(f"{tool} needs another kernel: {done.stderr}")
        assert done.returncode == 0, done.stderr
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        for line in lines:
            validator(tool).validate(line)
        results.append((was_compiled(done.stderr), lines[-1]))
    (first, before), (second, after) = results
    assert first and not second
    assert after["type"] == "summary" and after["tool"] == tool
    assert after["probes"] == before["probes"]
    assert not any(after["lost"].values()), after["lost"]


def test_another_filter_is_another_program_and_another_value_is_not(place: Path) -> None:
    words: tuple[str, ...]
    for words in (("-4",), ("-6",), ("--lport", "80"), ("--lport", "80,81"), ("--comm", "a*")):
        assert was_compiled(once(place, "tcplife", *words).stderr), words
    assert len(files(place)) == 5
    for words in (("--lport", "443"), ("--lport", "22,25"), ("--lport", "80", "--max-events", "3")):
        assert not was_compiled(once(place, "tcplife", *words).stderr), words
    assert len(files(place)) == 5


def test_damaged_file_is_not_used_and_replaced(used: tuple[Path, str]) -> None:
    place, name = used
    good = (place / name).read_bytes()
    torn, flipped = good[: len(good) // 2], good[:-100] + bytes([good[-100] ^ 4]) + good[-99:]
    for damaged in (b"", torn, flipped):
        (place / name).write_bytes(damaged)
        assert was_compiled(once(place).stderr)
        assert files(place) == [name]
        assert (place / name).read_bytes() == good  # the compiler does the same every time
    assert not was_compiled(once(place).stderr)


def changed(good: bytes, change: Callable[[dict[str, Any], bytes], bytes]) -> bytes:
    """Return a kept file with another content and the right checksum of that."""
    magic, body = good[:8], good[40:]
    (length,) = struct.unpack_from("=I", body)
    described = json.loads(body[4 : 4 + length])
    codes = change(described, body[4 + length :])
    text = json.dumps(described).encode()
    body = struct.pack("=I", len(text)) + text + codes
    return magic + hashlib.sha256(body).digest() + body


def without_maps(described: dict[str, Any], codes: bytes) -> bytes:
    described["maps"] = []
    return codes


def with_small_maps(described: dict[str, Any], codes: bytes) -> bytes:
    described["maps"] = [[name, kind, 4, 4, 1, 0] for name, kind, *_ in described["maps"]]
    return codes


def with_other_names(described: dict[str, Any], codes: bytes) -> bytes:
    described["programs"] = {f"x{name}": size for name, size in described["programs"].items()}
    return codes


def with_zeros(described: dict[str, Any], codes: bytes) -> bytes:
    return bytes(len(codes))


def with_nothing(described: dict[str, Any], codes: bytes) -> bytes:
    described.clear()
    return b""


@pytest.mark.parametrize(
    "change", [without_maps, with_small_maps, with_other_names, with_zeros, with_nothing]
)
def test_wrong_content_with_a_right_checksum_is_thrown_away(
    used: tuple[Path, str], change: Callable[[dict[str, Any], bytes], bytes]
) -> None:
    place, name = used
    good = (place / name).read_bytes()
    (place / name).write_bytes(changed(good, change))
    done = once(place)
    assert was_compiled(done.stderr) and "ignored: its content is invalid" in done.stderr
    assert (place / name).read_bytes() == good
    assert not was_compiled(once(place).stderr)


def test_what_the_verifier_refuses_is_compiled_again_though_its_seal_is_right(
    used: tuple[Path, str],
) -> None:
    place, name = used
    good = (place / name).read_bytes()
    image = unpack(good, name)
    assert image
    zeros = BpfObject(
        image.maps, {entry: bytes(len(code)) for entry, code in image.programs.items()}
    )
    for wrong in (zeros, BpfObject((), image.programs)):
        (place / name).write_bytes(pack(wrong, name))
        done = once(place)
        assert "netbpf: the cached program is compiled again: " in done.stderr
        assert "netbpf: compiled in " in done.stderr
        assert (place / name).read_bytes() == good
    assert not was_compiled(once(place).stderr)


def test_program_with_another_filter_under_this_ones_name_is_thrown_away(place: Path) -> None:
    once(place, "tcplife", "-4")
    (four,) = files(place)
    once(place, "tcplife", "-6")
    (six,) = set(files(place)) - {four}
    good = (place / six).read_bytes()
    (place / six).write_bytes((place / four).read_bytes())
    assert was_compiled(once(place, "tcplife", "-6").stderr)
    assert (place / six).read_bytes() == good


@pytest.mark.parametrize("kind", ["fifo", "directory", "link", "device", "large"])
def test_what_is_no_file_of_ours_is_thrown_away(used: tuple[Path, str], kind: str) -> None:
    place, name = used
    good = (place / name).read_bytes()
    (place / name).unlink()
    if kind == "fifo":
        os.mkfifo(place / name, 0o600)
    elif kind == "directory":
        (place / name).mkdir(0o700)
    elif kind == "link":
        (place / name).symlink_to("/etc/hostname")
    elif kind == "device":
        os.mknod(place / name, 0o600 | stat.S_IFCHR, os.makedev(1, 5))
    else:
        (place / name).touch(0o600)
        os.truncate(place / name, 1 << 40)
    done = once(place)
    assert was_compiled(done.stderr) and f"{name[:12]}... is ignored" in done.stderr
    assert (place / name).read_bytes() == good


def test_way_through_a_directory_of_somebody_else_is_not_gone(place: Path) -> None:
    inside = place / "theirs" / "cache"
    inside.parent.mkdir(parents=True)
    once(inside)
    assert not was_compiled(once(inside).stderr)
    os.chown(inside.parent, NOBODY, NOBODY)
    done = once(inside)
    assert was_compiled(done.stderr) and "belongs to another user" in done.stderr


def in_an_empty_run(wanted: str) -> tuple[str, list[str]]:
    """Run tcplife where /run is empty; return what it says, and mode and path of what is there."""
    script = (
        "mount -t tmpfs none /run && "
        "NETBPF_CACHE=$0 \"$@\" >/dev/null && find /run -mindepth 1 -printf '%m %p\\n'"
    )
    line = command("tcplife", "-d", "0.1", "-v")
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script, wanted, *line],
        cwd=SOURCE_TREE, capture_output=True, text=True, timeout=START_TIMEOUT, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stderr, done.stdout.splitlines()


def test_it_is_in_run_by_default_and_off_writes_nothing() -> None:
    said, found = in_an_empty_run("off")
    assert was_compiled(said) and found == []
    assert "no cache of compiled programs: NETBPF_CACHE is off" in said
    assert not (SOURCE_TREE / "off").exists()
    said, found = in_an_empty_run("")
    assert was_compiled(said)
    directory, *kept = sorted(found, reverse=True)
    assert directory == "700 /run/netbpf"
    assert len(kept) == 2, "the compiled program and the kernel's types"
    assert all(file.startswith("600 /run/netbpf/") for file in kept)


@pytest.mark.parametrize("where", ["/proc/netbpf", "/sys/netbpf", "/no/such/place", "/dev/null"])
def test_place_that_cannot_be_written_is_harmless(where: str) -> None:
    done = once(where)
    assert was_compiled(done.stderr)
    assert where in done.stderr
    quiet = netbpf_once("tcplife", "-d", "0.1", env=with_cache(where))
    assert quiet.returncode == 0
    assert where not in quiet.stderr  # said only when asked


def test_directory_that_is_not_safe_is_neither_read_nor_written(used: tuple[Path, str]) -> None:
    place, name = used
    kept = (place / name).stat().st_mtime_ns

    def refused(where: Path, word: str) -> None:
        done = once(where)
        assert was_compiled(done.stderr)
        assert word in done.stderr
        assert files(place) == [name] and (place / name).stat().st_mtime_ns == kept

    place.chmod(0o777)
    refused(place, "can be written by others")
    place.chmod(0o700)
    os.chown(place, NOBODY, NOBODY)
    refused(place, "belongs to another user")
    os.chown(place, 0, 0)
    link = place.with_name("link")
    link.symlink_to(place)
    refused(link, "not usable")
    assert not was_compiled(once(place).stderr)


def test_file_of_somebody_else_is_not_loaded(used: tuple[Path, str]) -> None:
    place, name = used
    os.chown(place / name, NOBODY, NOBODY)
    assert was_compiled(once(place).stderr)
    assert (place / name).stat().st_uid == 0  # replaced by our own


def test_doctor_says_where_it_is_or_why_there_is_none(place: Path) -> None:
    def told(where: object) -> dict[str, str]:
        report = json.loads(netbpf_once("doctor", "--json", env=with_cache(where)).stdout)
        (check,) = (check for check in report["checks"] if check["name"] == "cache")
        return dict(check)

    assert told(place)["words"] == f"{place}, created by the first start"
    assert not place.exists()
    once(place)
    assert told(place)["words"].startswith(f"{place}, 2 files, ")
    assert told(place)["state"] == "ok"
    off = told("off")
    assert off["state"] == "absent" and "NETBPF_CACHE is off" in off["words"]


def test_compiler_reads_a_few_symbols_and_says_the_same_as_with_all_of_them(place: Path) -> None:
    code = (
        "import sys; seen, change = open(sys.argv.pop(1), 'a'), sys.argv.pop(1)\n"
        "from netbpf.bpf import compiler, few_symbols\n"
        "if change: few_symbols.SYMBOLS = change\n"
        "pack = compiler.pack\n"
        "def count(*words):\n"
        "    lines = len(open('/proc/kallsyms').readlines())\n"
        "    seen.write(f'{lines}\\n'), seen.flush()\n"
        "    return pack(*words)\n"
        "compiler.pack = count\n"
        "from netbpf.cli import main; main()"
    )
    programs = []
    # Where nothing can be mounted, bcc reads all symbols.
    for number, change in enumerate(("", "/no/such/file")):
        cache, seen = place / str(number), place.with_name(f"seen-{number}")
        place.mkdir(exist_ok=True)
        words = [seen, change, "tcplife", "-d", "0.1"]
        line = [sys.executable, "-c", code, *map(str, words)]
        done = subprocess.run(line, env=with_cache(cache), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        lines = int(seen.read_text().split()[0])
        assert lines > 10_000 if change else lines == 4
        (name,) = files(cache)
        programs.append((cache / name).read_bytes())
    assert programs[0] == programs[1]
    mounts = Path("/proc/self/mounts").read_text()
    assert "kallsyms" not in mounts and "bpf_programs" not in mounts


# --- the kernel's types ---------------------------------------------------------------------------


def read_types(place: Path, *words: object) -> tuple[bool, str]:
    """Start a tool; return whether it read the kernel's BTF, and what -v says."""
    trace = place.parent / "trace"
    trace.unlink(missing_ok=True)
    code = (
        "import sys; seen = open(sys.argv.pop(1), 'a')\n"
        "from netbpf.kernel import known_types\n"
        "whole = known_types.Btf\n"
        "known_types.Btf = lambda *words: (seen.write('read'), seen.flush(), whole(*words))[-1]\n"
        "from netbpf.cli import main; main()"
    )
    started = [sys.executable, "-c", code, trace, *words, "-d", "0.1", "--json", "-v"]
    done = subprocess.run(
        list(map(str, started)), env=with_cache(place), capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return "read" in trace.read_text(), done.stderr


def test_types_are_read_once_by_all_starts_of_a_tool(place: Path) -> None:
    assert read_types(place, "tcplife")[0]
    assert not read_types(place, "tcplife")[0]
    # Another tool needs others, and adds them.
    assert read_types(place, "skbdrop")[0]
    assert [read_types(place, tool)[0] for tool in ("tcplife", "skbdrop")] == [False, False]


def test_known_types_are_those_of_the_kernel(place: Path) -> None:
    for tool in ("tcplife", "skbdrop", "soconnect"):
        once(place, tool)
    answers = type_answers.unpack(
        (place / type_answers.file_name()).read_bytes(), type_answers.file_name()
    )
    assert answers and len(answers) > 100
    btf = Btf()
    for question, known in answers.items():
        query, *words = question.split(" ")
        arguments = [int(word) if word.isdecimal() else word for word in words]
        found = getattr(btf, query)(*arguments)
        assert known == (list(found) if isinstance(found, tuple) else found), question


@pytest.mark.parametrize("damage", ["cut", "changed", "empty", "of another boot"])
def test_damaged_types_are_read_again(used: tuple[Path, str], damage: str) -> None:
    place, _ = used
    path = place / type_answers.file_name()
    data = path.read_bytes()
    path.write_bytes(
        {
            "cut": data[:-1],
            "changed": data.replace(b"sock", b"sick"),
            "empty": b"",
            "of another boot": type_answers.pack({"size sock": 8}, "0" * 64),
        }[damage]
    )
    read, said = read_types(place, "tcplife")
    assert read and "its content is invalid" in said
    assert path.read_bytes() == data
