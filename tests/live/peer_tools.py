"""A second opinion: libbpf-tools' tcplife, watching the same traffic."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from pathlib import Path

import harness
from harness import TIMEOUT, wait_until

# It finds its tracepoint through tracefs: mounted where only this process sees it.
_COMMAND = "mount -t tracefs none /sys/kernel/tracing; exec tcplife -w"
_COLUMNS = 9  # PID COMM LADDR LPORT RADDR RPORT TX_KB RX_KB MS


class PeerTcplife:
    """The peer's tool, attached when the constructor returns."""

    def __init__(self, directory: Path) -> None:
        self._out = directory / "tcplife"
        with self._out.open("wb") as out:
            line = ["unshare", "--mount", "sh", "-c", _COMMAND]
            self._process = subprocess.Popen(
                line, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT
            )
        try:
            wait_until(self._attached, what="libbpf-tools' tcplife to attach")
        except AssertionError:
            self.kill()
            raise

    @staticmethod
    def installed() -> bool:
        """Is it there? bcc's tool of that name is another one, and called tcplife-bpfcc."""
        return shutil.which("tcplife") is not None

    def stop(self) -> list[tuple[str, ...]]:
        """End it and return (laddr, lport, raddr, rport, tx_kb, rx_kb) of each session."""
        # Its output is buffered until it ends in order.
        self._process.send_signal(2)
        assert self._process.wait(TIMEOUT) == 0, self._out.read_text()
        text = self._out.read_text().replace("::ffff:", "")
        rows = [line.split() for line in text.splitlines()[1:]]
        return [tuple(row[2:8]) for row in rows if len(row) == _COLUMNS]

    def kill(self) -> None:
        """End it whatever it does."""
        harness.kill(self._process)

    def _attached(self) -> bool:
        assert self._process.poll() is None, self._out.read_text()
        found = set()
        with contextlib.suppress(FileNotFoundError):
            for descriptor in Path(f"/proc/{self._process.pid}/fd").iterdir():
                found.add(os.readlink(descriptor))
        # It makes the epoll instance of its reader after it has attached.
        return {"anon_inode:bpf_link", "anon_inode:[eventpoll]"} <= found
