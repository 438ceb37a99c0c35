"""What manual pages and the README say alike: options, probes, exit codes."""

from __future__ import annotations

from netbpf.declare.options import Option
from netbpf.declare.probes import Alternative, Probe
from netbpf.errors import EXIT_FAILURE, EXIT_LOST, EXIT_PRIVILEGE, EXIT_UNSUPPORTED, EXIT_USAGE

EXIT_STATUS = (
    ("0", "done, or ended by Ctrl-C, SIGTERM or a closed pipe"),
    (str(EXIT_FAILURE), "failure"),
    (str(EXIT_USAGE), "the command line is wrong"),
    (str(EXIT_LOST), "data was lost, and --fail-on-loss was given"),
    (str(EXIT_UNSUPPORTED), "this kernel or this machine cannot do it"),
    (str(EXIT_PRIVILEGE), "privileges are missing"),
)


def option_words(option: Option) -> tuple[str, str]:
    """Return (spellings with the argument, meaning with the default) of an option."""
    argument = "|".join(option.choices) or option.metavar
    spelling = ", ".join(option.flags) + (f" {argument}" if argument else "")
    default = f" (default {option.default})" if option.default else ""
    return spelling, option.help + default


def alternative_words(alternative: Alternative, mark: str = "") -> str:
    """Return an alternative in words, its targets between two `mark`s; "or" where one will do."""
    names = [f"{mark}{name}{mark}" for name in alternative.names]
    joint = ", " if alternative.every or alternative.how.user_space else " or "
    return f"{alternative.words} {joint.join(names)}".rstrip() + lost_words(alternative)


def lost_words(alternative: Alternative) -> str:
    """Return what an alternative cannot tell, as the end of a phrase."""
    return f", without {', '.join(alternative.loses)}" if alternative.loses else ""


def probe_conditions(probe: Probe) -> str:
    """Return when a probe is used and what is lost without it, "" if it is always needed."""
    words = []
    if probe.option:
        words.append(f"only with --{probe.option.replace('_', '-')}")
    if probe.with_probe:
        words.append(f"only where '{probe.with_probe}' uses the same kind")
    if probe.complements:
        words.append(f"only where '{probe.complements}' uses another kind")
    if probe.optional:
        lost = f": {', '.join(probe.loses)} may stay unknown without it" if probe.loses else ""
        words.append("optional" + lost)
    return "; ".join(words)
