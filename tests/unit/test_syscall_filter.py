"""The system call filter: which calls it refuses and which it allows, each in its own process."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import pytest

from netbpf.system import syscall_filter

SOURCE_TREE = Path(__file__).resolve().parents[2]
CONFINED = """
import ctypes, errno, os, signal, socket, sys, threading, time
from netbpf.system import syscall_filter
from netbpf.system.syscalls import prctl
libc = ctypes.CDLL(None, use_errno=True)

def refused(call, *arguments):
    "Return the name of the error."
    try:
        result = call(*arguments)
    except OSError as error:
        return errno.errorcode[error.errno]
    return errno.errorcode[ctypes.get_errno()] if result == -1 else result

prctl(38, 1)
syscall_filter.prepare(syscall_filter.Allowed({allowed}))()
{more}
print(repr({expression}))
"""


def confined(expression: str, allowed: str = "", more: str = "") -> str:
    """Return the value of an expression, evaluated in a confined process."""
    code = CONFINED.format(expression=expression, allowed=allowed, more=more)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=SOURCE_TREE, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


pytestmark = pytest.mark.skipif(
    not syscall_filter.available(), reason="needs libseccomp's binding: apt install python3-seccomp"
)


@pytest.mark.parametrize(
    "call",
    [
        "os.execv, '/bin/true', ['true']",
        "os.open, '/tmp/netbpf-new', os.O_WRONLY | os.O_CREAT",
        "os.open, '/dev/null', os.O_RDWR",
        "os.open, '/etc/hostname', os.O_RDONLY | os.O_TRUNC",
        "os.unlink, '/tmp/netbpf-absent'",
        "os.rename, '/tmp/netbpf-absent', '/tmp/netbpf-new'",
        "os.mkdir, '/tmp/netbpf-new'",
        "os.chmod, '/tmp', 0o777",
        "os.symlink, '/etc/passwd', '/tmp/netbpf-new'",
        "os.setuid, os.getuid()",
        "os.kill, os.getppid(), 0",
        "socket.socket, socket.AF_INET, socket.SOCK_STREAM",
        "socket.socket, socket.AF_UNIX, socket.SOCK_STREAM",
        "libc.ptrace, 16, os.getppid(), None, None",
        "libc.mount, b'none', b'/mnt', b'tmpfs', 0, None",
        "libc.setns, 0, 0",
        "libc.unshare, 0x10000000",
        "libc.reboot, 0",
        "libc.init_module, None, 0, b''",
        "libc.personality, 0",
        "libc.syscall, 425, 1, None",  # io_uring_setup
        "libc.ioctl, 0, 0x5412, b'x'",  # TIOCSTI types into the terminal
        "libc.prctl, 23, 0, 0, 0, 0",  # PR_CAPBSET_READ, like all that are not listed
    ],
)
def test_calls_outside_the_loop_are_refused(call):
    assert confined(f"refused({call})") == "'EPERM'"


X86 = pytest.mark.skipif(
    platform.machine() != "x86_64", reason="needs x86-64: the call numbers are for it"
)


@X86
@pytest.mark.parametrize(
    "call",
    ["321, 5, None, 0", "298, None, 0, 0, 0, 0", "246, 0, 0, None, 0"],
    ids=["program", "probe", "kexec"],
)
def test_calls_by_number_are_refused(call):
    assert confined(f"refused(libc.syscall, {call})") == "'EPERM'"


@X86
def test_new_namespace_is_refused_by_every_call():
    assert confined("refused(libc.syscall, 56, 0x10000000, 0, 0, 0, 0)") == "'EPERM'"
    assert confined("refused(libc.syscall, 435, None, 0)") == "'ENOSYS'"  # clone3


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("open('/proc/self/status').read(5)", "'Name:'"),
        ("__import__('decimal').Decimal(2) + 1", "Decimal('3')"),
        ("os.waitpid(os.fork() or os._exit(0), 0)[1]", "0"),
        ("[t.start() or t.join() for t in [threading.Thread(target=list)]]", "[None]"),
        ("signal.setitimer(signal.ITIMER_REAL, 0)", "(0.0, 0.0)"),
        ("time.sleep(0.001)", "None"),
        ("len(os.listdir('/proc/self/fd')) > 2", "True"),
        ("len(bytearray(1 << 26))", str(1 << 26)),
        ("os.get_blocking(os.pipe()[0])", "True"),
    ],
)
def test_ordinary_python_code_still_works(expression, value):
    assert confined(expression) == value


def test_optional_permissions_are_granted():
    assert confined("refused(libc.setns, -1, 0)", "namespaces=True") == "'EBADF'"
    assert confined("refused(os.unlink, '/nonexistent/x')", "ready_file=True") == "'ENOENT'"
    assert confined("refused(os.kill, os.getpid(), 0)", "worker=True") == "None"


def test_process_with_probes_may_send_sigkill_only():
    kill = "(refused(os.kill, child, 9), os.waitpid(child, 0)[1])"
    assert confined(kill, "probes=True", "child = os.fork() or time.sleep(60)") == "(None, 9)"
    assert confined("refused(os.kill, os.getppid(), 0)", "probes=True") == "'EPERM'"


def test_no_file_can_be_created_after_the_ready_file(tmp_path):
    path = tmp_path / "ready"
    new = "os.O_WRONLY | os.O_CREAT | os.O_EXCL"
    call = f"refused(os.open, {str(path)!r}, {new})"
    assert confined(call, "ready_file=True").isdecimal()
    path.unlink()
    assert confined(
        f"refused(os.open, {str(path)!r}, os.O_WRONLY | os.O_CREAT)", "ready_file=True"
    ) == ("'EPERM'")
    assert confined(call, "ready_file=True", "syscall_filter.deny_new_files()") == "'EPERM'"
    assert confined("open('/proc/version').read(5)", "ready_file=True",
                    "syscall_filter.deny_new_files()") == "'Linux'"  # fmt: skip
