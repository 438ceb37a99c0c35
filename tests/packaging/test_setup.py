"""scripts/setup.sh against a pretended machine: package manager, Python and pip are stubs.

The script runs as it is, from a copy in which only its absolute paths lead into the pretended
machine. What it did is read from what the stubs wrote down, and from what is left there.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SOURCE_TREE = Path(__file__).resolve().parents[2]
POSIX = ("cat", "chmod", "cut", "env", "grep", "head", "mkdir", "rm", "sed", "sh", "sha256sum",
         "sleep", "sort", "tail", "tee", "touch", "tr")  # fmt: skip

# What each level is for: package of apt, package of dnf (None where it comes with another one of
# the list), and what of it the project uses ("" for what is there for looking around by hand).
RUN = [
    ("python3", "python3", "/usr/bin/python3"),
    ("python3-bpfcc", "python3-bcc", "from bcc import|import bcc"),
    ("python3-click", "python3-click", "import click"),
    ("python3-numpy", "python3-numpy", "import numpy"),
    ("python3-pyelftools", "python3-pyelftools", "from elftools"),
    ("python3-seccomp", "python3-libseccomp", "import seccomp"),
    (None, "libbpf", "libbpf.so.1"),
]
DEV = [
    ("python3-venv", "python3-pip", '"venv"'),
    ("ca-certificates", "ca-certificates", "ca-certificates"),
    ("make", "make", "$(MAKE)|make "),
    ("clang-format", "clang-tools-extra", "clang-format"),
    ("shellcheck", "ShellCheck", "shellcheck"),
]
TEST = [
    ("gcc", "gcc", '"gcc"'),
    ("libc6-dev", "glibc-devel", "#include <"),
    ("musl-tools", "musl-gcc", "musl-gcc"),
    ("golang-go", "golang", '"go"'),
    ("libbpf-tools", "libbpf-tools", "libbpf-tools"),
    ("iproute2", "iproute", '"ip"'),
    (None, "iproute-tc", '"tc"'),
    ("nftables", "nftables", '"nft"'),
    ("iptables", "iptables-nft", "iptables"),
    ("strace", "strace", '"strace"'),
    ("curl", "curl", '"curl"'),
    ("jq", "jq", ""),
    ("wrk", "wrk", '"wrk"'),
    ("nginx-light", "nginx", "nginx"),
    ("redis-server", "redis", "redis-server"),
    ("iperf3", "iperf3", '"iperf3"'),
    ("bind9-dnsutils", "bind-utils", ""),
]
GUEST = [*TEST, ("python3-venv", "python3-pip", '"venv"')]
BENCH = [
    ("bpfcc-tools", "bcc-tools", "bpfcc"),
    ("libbpf-tools", "libbpf-tools", "libbpf-tools"),
    ("bpftrace", "bpftrace", '"bpftrace"'),
    ("iproute2", "iproute", '"ip"'),
    ("nginx-light", "nginx", "nginx"),
    ("wrk", "wrk", '"wrk"'),
    ("linux-headers-riscy", "kernel-devel", "headers"),
]
VM = [
    ("vagrant", "vagrant", '"vagrant"'),
    ("vagrant-libvirt", "vagrant-libvirt", "libvirt"),
    ("libvirt-daemon-system", "libvirt-daemon-kvm", "libvirtd"),
    ("libvirt-clients", "libvirt-client", '"virsh"'),
    ("qemu-system-x86", "qemu-system-x86", "qemu-system-x86_64"),
    ("qemu-utils", "qemu-img", "qemu-img"),
    ("dnsmasq-base", "dnsmasq", "network"),
    ("iptables", "iptables-nft", "iptables"),
    ("rsync", "rsync", "rsync"),
    ("openssh-client", "openssh-clients", "ssh"),
    ("mmdebstrap", "mmdebstrap", "mmdebstrap"),
    ("grub-pc-bin", "grub2-pc-modules", "i386-pc"),
    ("grub-common", "grub2-tools", "grub-mkimage"),
    ("fdisk", "util-linux", "sfdisk"),
    ("pigz", "pigz", "pigz"),
    ("python3-yaml", "python3-pyyaml", "import yaml"),
]
LEVELS = {
    "run": RUN,
    "dev": [*RUN, *DEV],
    "test": [*RUN, *DEV, *TEST],
    "guest": [*RUN, *GUEST],
    "bench": [*RUN, *BENCH],
    "vm": VM,
}
# dnf's guests lint as well: python3-pip is in the list of `dev`.
DNF_GUEST = {dnf for _, dnf, _ in DEV}

# It waits for another apt, asks nothing and has no service of this machine restarted.
APT_GET = """
wait=no
case "$*" in *"-o DPkg::Lock::Timeout="[1-9]*) wait=yes ;; esac
[ "$wait $DEBIAN_FRONTEND $NEEDRESTART_SUSPEND" = "yes noninteractive 1" ] || exit 100
while [ $# -gt 0 ]; do
    case $1 in
    -o) shift ;;
    update) exit "$(cat "$MACHINE/update-status")" ;;
    install) shift; break ;;
    esac
    shift
done
exec "$MACHINE/stubs/install" "$@"
"""
DNF = """
while [ $# -gt 0 ]; do
    case $1 in
    repoquery) grep -qx "$2" "$MACHINE/not-offered" || echo "$2"; exit 0 ;;
    install) shift; break ;;
    esac
    shift
done
exec "$MACHINE/stubs/install" "$@"
"""
INSTALL = """
echo "$*" >>"$MACHINE/installs"
for name; do
    # What the package's own script would ask before it starts a daemon.
    status=0
    if [ -x "$MACHINE/policy-rc.d" ]; then "$MACHINE/policy-rc.d" "$name" start || status=$?; fi
    echo "$name $status" >>"$MACHINE/started"
    if grep -qx "$name" "$MACHINE/not-offered"; then
        echo "E: Unable to locate package $name"; exit 100
    fi
done
if [ -e "$MACHINE/slow" ]; then touch "$MACHINE/at-work"; sleep 30; fi
if [ -e "$MACHINE/broken" ]; then cat "$MACHINE/broken"; exit 100; fi
for name; do
    touch "$MACHINE/packages/$name"
    if [ -d "$MACHINE/brings/$name" ]; then cp -r "$MACHINE/brings/$name/." "$MACHINE/site/"; fi
done
"""
PYTHON = """
if [ "$1 $2" = "-m venv" ]; then
    for place; do :; done
    mkdir -p "$place/bin"
    cp "$MACHINE/stubs/venv-python" "$place/bin/python"
    exit 0
fi
PYTHONPATH=$MACHINE/site exec {python} -S "$@"
"""
VENV_PYTHON = """
case $1 in -c) exit 0 ;; esac
echo "$*" >>"$MACHINE/pip"
if [ -e "$MACHINE/pip-fails" ]; then exit 1; fi
"""


class Machine:
    """A pretended machine of a distribution: nothing is installed at first, everything offered."""

    def __init__(self, top: Path, manager: str, os_release: str) -> None:
        self.top, self.manager = top, manager
        for name in ("bin", "stubs", "packages", "site", "tree/scripts", "brings"):
            (top / name).mkdir(parents=True)
        for name in ("not-offered", "installs", "started", "pip"):
            (top / name).write_text("")
        (top / "update-status").write_text("0")
        (top / "os-release").write_text(os_release)
        for name in ("pyproject.toml", "setup.cfg"):
            shutil.copy(SOURCE_TREE / name, top / "tree" / name)
        self._copy_script()
        self._stubs()
        self.offer_python("8.1.7")

    def _copy_script(self) -> None:
        text = (SOURCE_TREE / "scripts" / "setup.sh").read_text()
        for old, new in (
            ("PYTHON=/usr/bin/python3", f"PYTHON={self.top}/stubs/python3"),
            ("POLICY=/usr/sbin/policy-rc.d", f"POLICY={self.top}/policy-rc.d"),
            ("/etc/os-release", f"{self.top}/os-release"),
            ("-x /usr/sbin/nginx", f"-x {self.top}/nginx"),
            ('"/lib/modules/$(uname -r)/build"', f'"{self.top}/build-tree"'),
            ("PATH=$PATH:/usr/sbin:/sbin", "PATH=$PATH"),
        ):
            assert text.count(old) == 1, f"setup.sh has another form of: {old}"
            text = text.replace(old, new)
        script = self.top / "tree/scripts/setup.sh"
        script.write_text(text)
        script.chmod(0o755)

    def _stubs(self) -> None:
        for name in (*POSIX, "cp", "basename", "dirname"):
            (self.top / "bin" / name).symlink_to(shutil.which(name) or name)
        self.stub("bin/id", "echo 0")
        self.stub("bin/uname", "echo 6.1")
        self.stub("stubs/install", INSTALL)
        self.stub("stubs/python3", PYTHON.format(python=sys.executable))
        self.stub("stubs/venv-python", VENV_PYTHON)
        if self.manager == "apt":
            self.stub("bin/apt-get", APT_GET)
            self.stub(
                "bin/apt-cache", 'for last; do :; done; ! grep -qx "$last" "$MACHINE/not-offered"'
            )
            self.stub("bin/dpkg", "echo riscy")
            self.stub("bin/update-rc.d", 'echo "$*" >>"$MACHINE/disabled"')
            self.stub("bin/dpkg-query", self._listing("installed %s"))
        elif self.manager == "dnf":
            self.stub("bin/dnf", DNF)
            self.stub("bin/rpm", self._listing("%s"))

    @staticmethod
    def _listing(form: str) -> str:
        shown = form.replace("%s", "$name")
        return f'for name; do if [ -e "$MACHINE/packages/$name" ]; then echo "{shown}"; fi; done'

    def stub(self, name: str, body: str) -> None:
        """Put an executable there."""
        (self.top / name).write_text(f"#!/bin/sh\n{body}\n")
        (self.top / name).chmod(0o755)

    def offer_python(self, click: str) -> None:
        """Let the packages of `run` bring what they bring, click in that version."""
        bcc = "python3-bpfcc" if self.manager == "apt" else "python3-bcc"
        self._bring(bcc, "bcc/__init__.py", "bcc/libbcc.py")
        for package, name, version in (
            ("python3-click", "click", click),
            ("python3-numpy", "numpy", "1.24.2"),
            ("python3-pyelftools", "pyelftools", "0.29"),
        ):
            info = f"{name}-{version}.dist-info/METADATA"
            self._bring(package, info)
            text = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
            (self.top / "brings" / package / info).write_text(text)

    def _bring(self, package: str, *files: str) -> None:
        shutil.rmtree(self.top / "brings" / package, ignore_errors=True)
        for name in files:
            path = self.top / "brings" / package / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("")

    def start(self, level: str) -> subprocess.Popen[str]:
        """Start the script with its level as only argument."""
        return subprocess.Popen(
            ["/bin/sh", str(self.top / "tree/scripts/setup.sh"), level],
            env={"PATH": f"{self.top}/bin", "MACHINE": str(self.top), "HOME": str(self.top)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, level: str) -> tuple[int, str]:
        """Run the script; return its status and what it wrote to stderr."""
        process = self.start(level)
        out, err = process.communicate(timeout=60)
        assert out == ""
        return process.returncode, err

    def lines(self, name: str) -> list[str]:
        """Return the lines of a file on the machine, none if it is not there."""
        path = self.top / name
        return path.read_text().splitlines() if path.exists() else []

    @property
    def installed(self) -> set[str]:
        """The packages that were installed."""
        return {path.name for path in (self.top / "packages").iterdir()}

    @property
    def policy(self) -> Path:
        """Where Debian asks whether a daemon may be started."""
        return self.top / "policy-rc.d"


RELEASES = {"debian": "ID=debian\n", "ubuntu": "NAME=Ubuntu\nID=ubuntu\n", "fedora": "ID=fedora\n"}


@pytest.fixture
def debian(tmp_path: Path) -> Machine:
    return Machine(tmp_path, "apt", RELEASES["debian"])


@pytest.fixture
def fedora(tmp_path: Path) -> Machine:
    return Machine(tmp_path, "dnf", RELEASES["fedora"])


# --- packages ------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", LEVELS)
def test_debian_gets_what_the_level_needs(debian: Machine, level: str) -> None:
    status, err = debian.run(level)
    assert status == 0, err
    assert debian.installed == {apt for apt, _, _ in LEVELS[level] if apt}


@pytest.mark.parametrize("level", LEVELS)
def test_fedora_gets_what_the_level_needs(fedora: Machine, level: str) -> None:
    status, err = fedora.run(level)
    assert status == 0, err
    wanted = {dnf for _, dnf, _ in LEVELS[level] if dnf}
    assert fedora.installed == wanted | (DNF_GUEST if level == "guest" else set())


def test_every_package_is_used_by_something() -> None:
    trees = ("netbpf", "bpf_programs", "tests", "bench", "vagrant/lab", ".ci")
    files = [SOURCE_TREE / name for name in ("Makefile", "pyproject.toml", "vagrant/mkbox.sh")]
    for tree in trees:
        files += [path for path in (SOURCE_TREE / tree).rglob("*") if path.is_file()]
    files.remove(Path(__file__).resolve())
    skip = {".json", ".pyc"}
    text = "\n".join(f.read_text(errors="replace") for f in files if f.suffix not in skip)
    for apt, dnf, use in (need for needs in LEVELS.values() for need in needs):
        assert any(word in text for word in use.split("|")), f"{apt or dnf}: nothing uses {use}"


def test_ubuntu_borrows_its_generic_headers(tmp_path: Path) -> None:
    ubuntu = Machine(tmp_path, "apt", RELEASES["ubuntu"])
    assert ubuntu.run("bench")[0] == 0
    assert "linux-headers-generic" in ubuntu.installed
    assert not any(name.endswith("riscy") for name in ubuntu.installed)


def test_headers_of_the_running_kernel_are_enough(debian: Machine) -> None:
    (debian.top / "build-tree").mkdir()
    assert debian.run("bench")[0] == 0
    assert not any(name.startswith("linux-headers") for name in debian.installed)


@pytest.mark.parametrize("machine", ["debian", "fedora"])
def test_nothing_is_called_where_everything_is_there(
    machine: str, request: pytest.FixtureRequest
) -> None:
    # GIVEN a machine on which it ran
    there: Machine = request.getfixturevalue(machine)
    assert there.run("test")[0] == 0
    for name in ("installs", "pip"):
        (there.top / name).write_text("")
    # WHEN it runs again
    status, err = there.run("test")
    # THEN it does and says nothing
    assert (status, err) == (0, "")
    assert there.lines("installs") == [] and there.lines("pip") == []


def test_another_nginx_is_not_replaced(debian: Machine) -> None:
    debian.stub("nginx", "exit 0")
    assert debian.run("test")[0] == 0
    assert "nginx-light" not in debian.installed and "redis-server" in debian.installed


@pytest.mark.parametrize("machine", ["debian", "fedora"])
def test_what_a_release_lacks_is_left_out_of_tests(
    machine: str, request: pytest.FixtureRequest
) -> None:
    there: Machine = request.getfixturevalue(machine)
    (there.top / "not-offered").write_text("wrk\n")
    status, err = there.run("test")
    assert status == 0, err
    assert "not available in this release, skipped: wrk" in err
    assert "wrk" not in there.installed and "jq" in there.installed
    # It is not asked for again.
    (there.top / "installs").write_text("")
    assert there.run("test")[0] == 0
    assert there.lines("installs") == []


def test_nothing_works_without_the_packages_of_run(debian: Machine) -> None:
    (debian.top / "not-offered").write_text("python3-bpfcc\n")
    status, err = debian.run("run")
    assert status == 1
    assert "this release does not have all of:" in err and "universe" in err


def test_stale_lists_are_no_reason_to_stop(debian: Machine) -> None:
    (debian.top / "update-status").write_text("100")
    status, err = debian.run("run")
    assert status == 0 and "could not refresh the package lists" in err


@pytest.mark.parametrize(
    ("said", "cause"),
    [
        (
            "E: Could not get lock /var/lib/dpkg/lock",
            "another program has locked the package manager",
        ),
        ("E: Failed to fetch http://x/y", "cannot reach the package servers"),
        ("E: something else", "cannot install: python3 "),
    ],
)
def test_a_failing_package_manager_is_explained(debian: Machine, said: str, cause: str) -> None:
    (debian.top / "broken").write_text(f"{said}\n")
    status, err = debian.run("run")
    assert status == 1 and cause in err and said in err and "hint:" in err


def test_without_a_package_manager_the_packages_are_named(tmp_path: Path) -> None:
    status, err = Machine(tmp_path, "none", "ID=other\n").run("run")
    assert status == 1 and "neither apt nor dnf" in err and "click, numpy and pyelftools" in err


def test_an_ordinary_user_needs_sudo(debian: Machine) -> None:
    debian.stub("bin/id", "echo 1000")
    status, err = debian.run("run")
    assert status == 1 and "needs root" in err and debian.installed == set()
    debian.stub("bin/sudo", 'echo "$1" >>"$MACHINE/sudo"; exec "$@"')
    assert debian.run("run")[0] == 0
    assert "python3-bpfcc" in debian.installed and debian.lines("sudo")


def test_an_unknown_level_is_refused(debian: Machine) -> None:
    status, err = debian.run("everything")
    assert status == 1 and "unknown level: everything" in err and debian.lines("installs") == []


# --- Python --------------------------------------------------------------------------------------


def pypi_bcc(machine: Machine) -> None:
    """Put the package that PyPI calls bcc where Python finds it: it has no libbcc.py."""
    (machine.top / "site/bcc").mkdir()
    (machine.top / "site/bcc/__init__.py").write_text("")
    for package in ("python3-click", "python3-numpy", "python3-pyelftools"):
        shutil.copytree(machine.top / "brings" / package, machine.top / "site", dirs_exist_ok=True)


def test_bcc_of_pypi_is_not_taken_for_the_bindings(debian: Machine) -> None:
    pypi_bcc(debian)
    assert debian.run("run")[0] == 0
    assert "python3-bpfcc" in debian.installed


def test_bcc_of_pypi_in_the_way_is_an_error(debian: Machine) -> None:
    # GIVEN the package is installed, but Python finds the other one first
    pypi_bcc(debian)
    shutil.rmtree(debian.top / "brings/python3-bpfcc")
    # WHEN and THEN
    status, err = debian.run("run")
    assert status == 1 and "lacks bcc's bindings" in err


@pytest.mark.parametrize("level", LEVELS)
def test_pip_is_never_asked_for_bcc(debian: Machine, level: str) -> None:
    assert debian.run(level)[0] == 0
    for line in debian.lines("pip"):
        assert not re.search(r"\bbcc\b", line)


def test_pyproject_does_not_depend_on_bcc() -> None:
    text = (SOURCE_TREE / "pyproject.toml").read_text()
    assert not re.search(r'"bcc\s*[\[<>=!~;"]', text.partition("[tool.")[0])


@pytest.mark.parametrize(
    ("level", "extras"),
    [("run", None), ("dev", ".[dev]"), ("test", ".[dev]"), ("guest", ".[test]"), ("bench", None)],
)
def test_environment_has_what_the_level_needs(
    debian: Machine, level: str, extras: str | None
) -> None:
    assert debian.run(level)[0] == 0
    asked = [line for line in debian.lines("pip") if "--editable" in line]
    assert [line.split()[-1] for line in asked] == ([extras] if extras else [])


@pytest.mark.parametrize("click", ["7.1.2", "8.0", "8.0.0"])
def test_an_older_click_is_put_into_an_environment(debian: Machine, click: str) -> None:
    debian.offer_python(click)
    assert debian.run("run")[0] == 0
    asked = [line.split()[-1] for line in debian.lines("pip") if "--editable" in line]
    assert asked == (["."] if click.startswith("7") else [])


def test_environment_is_made_again_when_its_inputs_change(debian: Machine) -> None:
    assert debian.run("dev")[0] == 0
    with (debian.top / "tree/pyproject.toml").open("a") as file:
        file.write("# changed\n")
    (debian.top / "pip").write_text("")
    assert debian.run("dev")[0] == 0
    assert any("--editable" in line for line in debian.lines("pip"))


def test_a_failing_pip_is_explained(debian: Machine) -> None:
    (debian.top / "pip-fails").write_text("")
    status, err = debian.run("dev")
    assert status == 1 and "pip cannot install" in err and "hint:" in err
    # It is tried again the next time.
    (debian.top / "pip-fails").unlink()
    assert debian.run("dev")[0] == 0


# --- daemons -------------------------------------------------------------------------------------


def test_daemons_are_not_started_and_the_policy_is_gone_then(debian: Machine) -> None:
    assert debian.run("test")[0] == 0
    started = dict(line.split() for line in debian.lines("started"))
    refused = {name for name, status in started.items() if status == "101"}
    assert refused == {"nginx-light", "redis-server", "iperf3"}
    assert not debian.policy.exists()
    assert set(debian.lines("disabled")) == {
        "nginx disable", "redis-server disable", "iperf3 disable",
    }  # fmt: skip


def test_policy_is_gone_after_a_failure(debian: Machine) -> None:
    assert debian.run("dev")[0] == 0
    (debian.top / "broken").write_text("E: something else\n")
    assert debian.run("test")[0] == 1
    assert any(line.endswith(" 101") for line in debian.lines("started"))
    assert not debian.policy.exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_policy_is_gone_after_a_signal(debian: Machine, number: signal.Signals) -> None:
    # GIVEN it waits for the package manager
    assert debian.run("dev")[0] == 0
    (debian.top / "slow").write_text("")
    process = debian.start("test")
    deadline = time.monotonic() + 30
    while not (debian.top / "at-work").exists():
        assert time.monotonic() < deadline, "the installation did not begin"
        time.sleep(0.05)
    assert debian.policy.exists()
    # WHEN it and what it started get a signal, as from Ctrl-C or a closed terminal
    os.killpg(process.pid, number)
    process.communicate(timeout=30)
    # THEN
    assert process.returncode != 0
    assert not debian.policy.exists()


def test_policy_of_the_administrator_stays(debian: Machine) -> None:
    debian.policy.write_text("#!/bin/sh\nexit 104\n")
    debian.policy.chmod(0o755)
    assert debian.run("test")[0] == 0
    assert debian.policy.read_text() == "#!/bin/sh\nexit 104\n"


def test_no_policy_is_put_there_where_no_daemon_comes(debian: Machine) -> None:
    assert debian.run("dev")[0] == 0
    assert all(line.endswith(" 0") for line in debian.lines("started"))
