"""A wheel, installed far away from the source tree, works and brings its C programs along."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

SOURCE_TREE = Path(__file__).resolve().parents[2]
SYSTEM_PYTHON = "/usr/bin/python3"
NOT_SOURCE = shutil.ignore_patterns(
    ".git", ".venv", "build", "dist", "*.egg-info", "__pycache__", ".*_cache"
)
# Neither the source tree nor the environment of the tests may help the installed package.
ENVIRONMENT = {
    name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")
}


def run(*command: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a command to its end and keep what it says."""
    return subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=ENVIRONMENT,
        text=True,
        capture_output=True,
        timeout=120,
        check=False,
    )


def succeed(*command: object, cwd: Path) -> str:
    """Run a command that must end well and return its standard output."""
    done = run(*command, cwd=cwd)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build both archives from a clean copy; the wheel is built from the source archive."""
    base = tmp_path_factory.mktemp("archives")
    shutil.copytree(SOURCE_TREE, base / "source", ignore=NOT_SOURCE)
    succeed(
        sys.executable,
        "-m",
        "build",
        "--no-isolation",
        "--outdir",
        base / "dist",
        cwd=base / "source",
    )
    return base / "dist"


@pytest.fixture(scope="module")
def wheel(archives: Path) -> Path:
    """Return the only wheel."""
    (found,) = archives.glob("netbpf-*.whl")
    return found


@pytest.fixture(scope="module")
def venv(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the wheel into an environment that sees the distribution's packages."""
    place = tmp_path_factory.mktemp("installed") / "venv"
    succeed(SYSTEM_PYTHON, "-m", "venv", "--system-site-packages", place, cwd=place.parent)
    succeed(place / "bin/python", "-m", "pip", "install", wheel, cwd=place.parent)
    return place


@pytest.fixture(scope="module")
def package(venv: Path) -> Path:
    """Return the directory of the installed package."""
    code = "import netbpf; print(netbpf.__path__[0])"
    where = Path(succeed(venv / "bin/python", "-c", code, cwd=venv).strip())
    assert venv in where.parents, f"imported from {where}, not from the wheel"
    return where


def c_files(top: Path) -> dict[str, bytes]:
    """Return the C programs and headers below a directory, by relative path."""
    return {str(path.relative_to(top)): path.read_bytes() for path in top.rglob("*.[ch]")}


def test_wheel_holds_every_c_program(wheel: Path) -> None:
    expected = c_files(SOURCE_TREE / "bpf_programs")
    assert expected
    prefix = "netbpf/bpf_programs/"
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if name.startswith(prefix)]
        found = {name[len(prefix) :]: archive.read(name) for name in names}
    assert found == expected


def test_wheel_holds_every_module(wheel: Path) -> None:
    expected = {str(path.relative_to(SOURCE_TREE)) for path in SOURCE_TREE.glob("netbpf/**/*.py")}
    with zipfile.ZipFile(wheel) as archive:
        assert {name for name in archive.namelist() if name.endswith(".py")} == expected


def test_wheel_says_its_licences(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        metadata = archive.read(name).decode()
    assert "Apache-2.0 AND GPL-2.0-only" in metadata
    # PyPI's package of that name is not what we need.
    assert "Requires-Dist: bcc" not in metadata


def test_source_archive_holds_every_c_program(archives: Path) -> None:
    (path,) = archives.glob("netbpf-*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.split("/", 1)[-1] for name in archive.getnames()}
    assert {f"bpf_programs/{name}" for name in c_files(SOURCE_TREE / "bpf_programs")} <= names


def test_installed_version(venv: Path, tmp_path: Path) -> None:
    code = "import netbpf; print(netbpf.__version__)"
    version = succeed(venv / "bin/python", "-c", code, cwd=tmp_path).strip()
    assert version in succeed(venv / "bin/netbpf", "--version", cwd=tmp_path)


def test_installed_list_names_every_tool(venv: Path, tmp_path: Path) -> None:
    listed = succeed(venv / "bin/netbpf", "list", cwd=tmp_path).split()
    programs = {path.name.split(".")[0] for path in SOURCE_TREE.glob("bpf_programs/*.bpf.c")}
    assert programs - {"owners"} <= set(listed)  # which finds owners for the tools of a session


@pytest.mark.live
@pytest.mark.beside
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: sudo make test")
def test_installed_tool_runs_the_program_of_the_wheel(
    venv: Path, package: Path, tmp_path: Path
) -> None:
    command = [venv / "bin/netbpf", "netsize", "-d", "1", "--json"]
    lines = succeed(*command, cwd=tmp_path).splitlines()
    summary = json.loads(lines[-1])
    assert (summary["tool"], summary["type"]) == ("netsize", "summary")
    assert summary["complete"]

    # The proof: once the wheel's copy is broken, the tool is broken, and says by which file.
    program = package / "bpf_programs" / "netsize.bpf.c"
    intact = program.read_bytes()
    program.write_bytes(b"#error taken from the wheel\n" + intact)
    try:
        broken = run(*command, "-v", cwd=tmp_path)
    finally:
        program.write_bytes(intact)
    assert broken.returncode != 0
    assert "taken from the wheel" in broken.stderr
