"""The errors a user can meet: what happened, what to do about it, and the exit code.

They are raised anywhere and printed in one place, `netbpf.cli`. Messages are lower case, without
a full stop, and quote their subject; the hint is an instruction.
"""

from __future__ import annotations

EXIT_FAILURE = 1
EXIT_USAGE = 2
EXIT_LOST = 3  # data was lost and --fail-on-loss was given
EXIT_UNSUPPORTED = 69  # EX_UNAVAILABLE of sysexits.h: this kernel or machine can't
EXIT_PRIVILEGE = 77  # EX_NOPERM of sysexits.h


class NetbpfError(Exception):
    """A failure with a cause in words and, where known, a way out."""

    exit_code = EXIT_FAILURE

    def __init__(self, message: str, hint: str = "", detail: str = "") -> None:
        """Take the one-line `message`, a one-line `hint`, and `detail` shown only with -v."""
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.detail = detail


class UsageError(NetbpfError):
    """The command line asks for something that cannot be meant."""

    exit_code = EXIT_USAGE


class Unsupported(NetbpfError):
    """This kernel or this machine lacks something that cannot be replaced."""

    exit_code = EXIT_UNSUPPORTED


class PrivilegeError(NetbpfError):
    """The process may not do what tracing needs."""

    exit_code = EXIT_PRIVILEGE


class AttachRefused(NetbpfError):
    """The kernel refused to load or attach one probe; the next alternative may still work.

    `probe` is the name of the refused probe in its declaration.
    """

    def __init__(self, probe: str, message: str, hint: str = "", detail: str = "") -> None:
        """See NetbpfError; `probe` names the declaration's probe."""
        super().__init__(message, hint, detail)
        self.probe = probe
