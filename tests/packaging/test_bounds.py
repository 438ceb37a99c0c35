"""What pyproject.toml promises: the unit tests pass with the lowest versions that it allows."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import netbpf

SOURCE_TREE = Path(__file__).resolve().parents[2]
TEXT = (SOURCE_TREE / "pyproject.toml").read_text()
# What the oldest distributions that are supported bring, so that bounds may not be higher: Debian
# 11's numpy 1.19.5 and pyelftools 0.27, Ubuntu 22.04's click 8.0.3 (Debian 11's is too old).
BROUGHT = {"click": "8.0", "numpy": "1.19", "pyelftools": "0.27"}
MODULES = {"elftools": "pyelftools"}
FROM_DISTRIBUTION = {"bcc", "seccomp"}  # only Debian packages them: scripts/setup.sh
OLDEST = "3.9"


def listed(key: str) -> list[str]:
    """Return a list of strings of pyproject.toml."""
    found = re.search(rf"^{key} = (\[.*?^\])", TEXT, re.M | re.S)
    assert found, f"pyproject.toml has no {key}"
    return list(ast.literal_eval(re.sub(r"^\s*#.*$", "", found[1], flags=re.M)))


def bounds(key: str) -> dict[str, str]:
    """Return {package: lowest version} of a list of dependencies."""
    return dict(re.split(">=|==", need) for need in listed(key))


def third_party() -> set[str]:
    """Return the distributions whose modules the package imports."""
    found = set()
    for path in (SOURCE_TREE / "netbpf").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                found.add((node.module or "").split(".")[0])
    ours = {"netbpf", "__future__"}
    standard = getattr(sys, "stdlib_module_names", None)
    assert standard, "run the tests with Python 3.10 or newer"
    return {MODULES.get(name, name) for name in found - ours - set(standard)}


def test_dependencies_are_what_the_package_imports() -> None:
    assert third_party() - FROM_DISTRIBUTION == set(bounds("dependencies"))


def test_bounds_are_what_the_oldest_distributions_bring() -> None:
    assert bounds("dependencies") == BROUGHT
    assert re.search(rf'^requires-python = ">={OLDEST}"$', TEXT, re.M)


def test_bounds_are_what_set_up_looks_for() -> None:
    """setup.sh reads them with an expression of its own, as 3.9 has no reader of TOML."""
    pattern = re.search(
        r"re\.findall\(r'(.*?)', needs\)", (SOURCE_TREE / "scripts/setup.sh").read_text()
    )
    assert pattern
    body = re.search(r"^dependencies = \[(.*?)^\]", TEXT, re.M | re.S)
    assert body and dict(re.findall(pattern[1], body[1])) == BROUGHT


def test_version_is_one_and_the_same() -> None:
    (version,) = re.findall(r'^version = "(.*)"$', TEXT, re.M)
    assert version == netbpf.__version__
    changes = re.findall(r"^## \[(.*?)\]", (SOURCE_TREE / "CHANGELOG.md").read_text(), re.M)
    released = [number for number in changes if number != "Unreleased"]
    assert not released or version.split(".")[:2] >= released[0].split(".")[:2]


# --- installed -----------------------------------------------------------------------------------


def succeed(*command: object, cwd: Path = SOURCE_TREE, seconds: int = 300) -> str:
    """Run a command that must end well and return what it wrote."""
    environment = {n: v for n, v in os.environ.items() if n not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(
        [str(word) for word in command], cwd=cwd, env=environment, text=True,
        stdin=subprocess.DEVNULL, capture_output=True, timeout=seconds, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def interpreters() -> Iterator[str]:
    """Yield Pythons, the oldest that is supported first if there is one."""
    yield from filter(None, [shutil.which(f"python{OLDEST}")])
    yield from map(str, Path.home().glob(f".pyenv/versions/{OLDEST}.*/bin/python"))
    yield sys.executable


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with nothing but pip, of the oldest Python that works here."""
    place = tmp_path_factory.mktemp("bounds") / "venv"
    for interpreter in interpreters():
        done = subprocess.run([interpreter, "-m", "venv", "--clear", place], capture_output=True)
        if done.returncode == 0:
            return place / "bin/python"
    raise AssertionError("no Python here makes an environment")


def lowest(python: Path, package: str, bound: str) -> str:
    """Install the lowest series from `bound` on that has a wheel for this Python; return it."""
    major, minor = (int(part) for part in bound.split(".")[:2])
    pip = (python, "-m", "pip", "install", "-q", "--no-input", "--only-binary", ":all:")
    for series in range(minor, minor + 20):
        wanted = f"{package}=={major}.{series}.*,>={bound}"
        done = subprocess.run([*map(str, pip), wanted], capture_output=True, text=True)
        if done.returncode == 0:
            return f"{major}.{series}"
        assert "No matching distribution" in done.stderr, done.stderr
    raise AssertionError(f"no wheel of {package} for this Python")


def test_unit_tests_pass_with_the_lowest_versions(python: Path) -> None:
    installed = {name: lowest(python, name, at) for name, at in bounds("dependencies").items()}
    # numpy has wheels for some Pythons only; all others are pure.
    old = (
        succeed(python, "-c", "import sys; print('%d.%d' % sys.version_info[:2])").strip() == OLDEST
    )
    assert {n: v for n, v in installed.items() if old or n != "numpy"} == {
        n: v for n, v in BROUGHT.items() if old or n != "numpy"
    }
    need = [f"{name}=={at}" for name, at in bounds("test").items()]
    succeed(python, "-m", "pip", "install", "-q", "--no-input", "--only-binary", ":all:", *need)
    said = succeed(python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/unit")
    assert re.search(r"^\d{3,} passed", said.splitlines()[-1]), said[-2000:]


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="setuptools 66 needs Python 3.11 or older")
def test_wheel_is_built_with_the_lowest_versions(python: Path, tmp_path: Path) -> None:
    (least,) = re.findall(r'^requires = \["setuptools>=(\d+)"\]', TEXT, re.M)
    needs = {name: at for name, at in bounds("dev").items() if name in ("setuptools", "wheel")}
    assert needs["setuptools"] == least
    pinned = [f"{name}=={at}" for name, at in needs.items()]
    succeed(python, "-m", "pip", "install", "-q", "--no-input", "--only-binary", ":all:", *pinned)
    skip = shutil.ignore_patterns(
        ".git", ".venv", "build", "dist", "*.egg-info", "boxes", ".*_cache"
    )
    shutil.copytree(SOURCE_TREE, tmp_path / "source", ignore=skip)
    succeed(
        python, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation",
        "--wheel-dir", tmp_path, ".", cwd=tmp_path / "source",
    )  # fmt: skip
    (wheel,) = tmp_path.glob("netbpf-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        assert "netbpf/bpf_programs/tcplife.bpf.c" in archive.namelist()
