"""Errors shown to users: message, hint and exit code.

Any module may raise them; only `netbpf.cli` prints them. Messages are lower case, have no full
stop and quote their subject. Hints are instructions.
"""

from __future__ import annotations

from collections.abc import Iterable

EXIT_FAILURE = 1
EXIT_USAGE = 2
EXIT_LOST = 3  # data was lost and --fail-on-loss was given
EXIT_UNSUPPORTED = 69  # EX_UNAVAILABLE of sysexits.h: not possible on this kernel or machine
EXIT_PRIVILEGE = 77  # EX_NOPERM of sysexits.h


def did_you_mean(word: str, names: Iterable[str]) -> str:
    """Return "did you mean NAME? " with the name most like `word`, or ""."""
    import difflib  # takes 3 ms and is rarely needed

    plain = {name.lstrip("-"): name for name in names if len(name) > 2}
    like = difflib.get_close_matches(word.lstrip("-"), plain, n=1)
    return f"did you mean {plain[like[0]]}? " if like else ""


class NetbpfError(Exception):
    """A failure with a message and, where known, a hint."""

    exit_code = EXIT_FAILURE

    def __init__(self, message: str, hint: str = "", detail: str = "") -> None:
        """`message` and `hint` are single lines; `detail` is printed only with -v."""
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.detail = detail


class UsageError(NetbpfError):
    """The command line is invalid."""

    exit_code = EXIT_USAGE


class Unsupported(NetbpfError):
    """This kernel or machine lacks a required feature."""

    exit_code = EXIT_UNSUPPORTED


class PrivilegeError(NetbpfError):
    """The process lacks a privilege that tracing requires."""

    exit_code = EXIT_PRIVILEGE


class AttachRefused(NetbpfError):
    """The kernel refused to load or attach one probe; the next alternative may still work.

    `probe` is the name of the declared probe.
    """

    def __init__(self, probe: str, message: str, hint: str = "", detail: str = "") -> None:
        """See NetbpfError for the other arguments."""
        super().__init__(message, hint, detail)
        self.probe = probe
