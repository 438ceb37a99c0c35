"""Run commands of netbpf in forks of this process, which has imported it.

A command that is refused at once takes 70 ms of CPU time as a process of its own, almost all of it
to start Python and to import.
"""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import tempfile

from harness import SLOW, SOURCE_TREE

import netbpf.__main__
import netbpf.cli
import netbpf.run.session  # noqa: F401 - so that the forks need not


def netbpf_forked(*args: object) -> subprocess.CompletedProcess[str]:
    """Run a netbpf command that ends by itself, as harness.netbpf_once does."""
    words = ["netbpf", *map(str, args)]
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        pid = os.fork()
        if pid == 0:
            _run(words, out.fileno(), err.fileno())
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode())
    return subprocess.CompletedProcess(words, status, *texts)


def _run(words: list[str], out: int, err: int) -> None:
    status = 99
    try:
        gc.disable()  # it would copy the pages of this process
        signal.alarm(int(60 * SLOW))
        for fd, other in ((os.open("/dev/null", os.O_RDONLY), 0), (out, 1), (err, 2)):
            os.dup2(fd, other)
        sys.stdin, sys.stdout, sys.stderr = (
            os.fdopen(fd, mode, closefd=False) for fd, mode in ((0, "r"), (1, "w"), (2, "w"))
        )
        os.chdir(SOURCE_TREE)
        sys.argv = words
        try:
            netbpf.__main__.main()
            status = 0
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        status = 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
