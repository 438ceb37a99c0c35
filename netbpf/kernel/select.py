"""The selection of probes: a pure function from a declaration and a kernel's snapshot to a plan."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple, Optional

from netbpf.declare.probes import Alternative, Probe
from netbpf.errors import PrivilegeError, Unsupported, UsageError
from netbpf.kernel.inspect import Kernel
from netbpf.system.privileges import Denied

_COVERED = "covered by"
_PREEMPTED = "other tasks may interrupt its programs here, and what they do then is not seen"
Excluded = Mapping[tuple[str, str], str]  # (probe, kind) -> why it was refused at run time


class Selection(NamedTuple):
    """What one probe will use: the alternative and its targets, and why no better one.

    `alternative` is None where an optional probe has none; `rejected` holds (alternative in
    words, reason) of every better one.
    """

    probe: Probe
    alternative: Optional[Alternative]
    targets: tuple[str, ...]
    rejected: tuple[tuple[str, str], ...]

    @property
    def kind(self) -> str:
        """The chosen kind, "" for none."""
        return self.alternative.kind if self.alternative else ""

    @property
    def entry(self) -> str:
        """The name of the C entry."""
        return f"{self.probe.name}_{self.kind}"

    @property
    def programs(self) -> tuple[tuple[str, tuple[str, ...]], ...]:
        """The programs to load, by name, with their targets: fentry and fexit take one each."""
        if not self.alternative:
            return ()
        if not self.alternative.how.typed or not self.targets:
            return ((self.entry, self.targets),)
        more = ((f"{self.entry}:{target}", (target,)) for target in self.targets[1:])
        return ((self.entry, self.targets[:1]), *more)

    @property
    def covered(self) -> bool:
        """Whether it is not used because the probe that it could stand in with sees everything."""
        reasons = (why for _, why in self.rejected)
        return not self.alternative and any(why.startswith(_COVERED) for why in reasons)

    @property
    def denied(self) -> str:
        """Why something is not seen for a lack of privileges, "" if nothing is."""
        if self.covered or (self.alternative and not self.alternative.loses):
            return ""
        return next((why for _, why in self.rejected if isinstance(why, Denied)), "")

    @property
    def lost_columns(self) -> tuple[str, ...]:
        """Columns that stay empty with this selection."""
        return self.alternative.loses if self.alternative else self.probe.loses


def select(
    probes: Sequence[Probe],
    kernel: Kernel,
    refused: Optional[Excluded] = None,
    forced: Optional[Mapping[str, str]] = None,
) -> list[Selection]:
    """Return the selection for every probe; raise Unsupported if one that is needed has none.

    That is a PrivilegeError if this process must not see one, or must not attach it.

    `refused` are alternatives that turned out not to work at run time, `forced` maps a probe's
    name to the one kind that may be used.
    """
    _check_forced(probes, forced or {})
    selections: dict[str, Selection] = {}
    for probe in probes:
        partner = selections.get(probe.with_probe or probe.complements)
        ways = _ways(probe, partner) if partner else probe.alternatives
        if ways:
            selections[probe.name] = _choose(probe, ways, kernel, refused or {}, forced or {})
        else:
            selections[probe.name] = Selection(probe, None, (), ((probe.name, _why_not(partner)),))
    return list(selections.values())


def missing(alternative: Alternative, kernel: Kernel) -> tuple[tuple[str, ...], str]:
    """Return the targets that `alternative` can use, or () and why it can use none."""
    usable, reason = [], ""
    for name in alternative.names or ("",):  # uprobes may find their targets while running
        why = _missing_target(alternative, name, kernel)
        if not why:
            usable.append(name)
            if not alternative.every:
                break
        reason = reason or why
    return tuple(filter(None, usable)), "" if usable else reason


def _ways(probe: Probe, partner: Selection) -> list[Alternative]:
    if probe.complements:
        return [way for way in probe.alternatives if way.kind != partner.kind]
    begins = partner.alternative.how.begins if partner.alternative else ()
    return [way for way in probe.alternatives if way.kind in (partner.kind, *begins)]


def _why_not(partner: Optional[Selection]) -> str:
    assert partner
    if partner.alternative:
        return f"{_COVERED} {partner.entry}"
    return partner.rejected[-1][1]  # no better than the one that it would stand in with


def _choose(
    probe: Probe,
    ways: Sequence[Alternative],
    kernel: Kernel,
    refused: Excluded,
    forced: Mapping[str, str],
) -> Selection:
    rejected: list[tuple[str, str]] = []
    for alternative in _ranked(ways, kernel):
        words = _words(alternative)
        wanted = forced.get(probe.name, alternative.kind)
        if wanted != alternative.kind:
            rejected.append((words, f"--probe asks for {wanted}"))
        elif (probe.name, alternative.kind) in refused:
            rejected.append((words, refused[probe.name, alternative.kind]))
        else:
            targets, reason = missing(alternative, kernel)
            if not reason:
                put_back = _put_back(alternative, ways, kernel)
                return Selection(probe, alternative, targets, (*put_back, *rejected))
            rejected.append((words, reason))
    if probe.optional:
        return Selection(probe, None, (), tuple(rejected))
    denied = [why for _, why in rejected if isinstance(why, Denied)]
    if denied:
        raise PrivilegeError(
            f"probe '{probe.name}' cannot be attached: {'; '.join(dict.fromkeys(denied))}",
            "run it as root, or give it what is named; 'netbpf doctor' lists what each tool needs",
        )
    tried = "; ".join(f"{words}: {why}" for words, why in rejected)
    raise Unsupported(
        f"kernel {kernel.release} has nothing for probe '{probe.name}' ({tried})",
        "run 'netbpf doctor' to see what each tool can use here",
    )


def _ranked(ways: Sequence[Alternative], kernel: Kernel) -> list[Alternative]:
    """Put what is preempted behind what is not, as long as that tells as much.

    The kernel runs no program on a CPU that is in the midst of the same program. A task that is
    preempted there hides what all others do until it is on again: on a busy CPU some percent of
    everything. Trace events and kprobes run with preemption off.
    """
    return sorted(ways, key=lambda way: (bool(way.loses), _preempted(way, kernel)))


def _preempted(alternative: Alternative, kernel: Kernel) -> bool:
    if alternative.how.preemptible:
        return kernel.preempts("rawtp")
    of_calls = any(name.startswith("syscalls:") for name in alternative.names)
    return of_calls and kernel.preempts("syscalls")


def _put_back(
    chosen: Alternative, ways: Sequence[Alternative], kernel: Kernel
) -> list[tuple[str, str]]:
    if chosen.loses or _preempted(chosen, kernel):
        return []  # then those have been tried before it
    better = ways[: ways.index(chosen)]
    return [(_words(way), _PREEMPTED) for way in better if _preempted(way, kernel)]


def _words(alternative: Alternative) -> str:
    return " ".join((alternative.words, *alternative.names[:1]))


def _missing_target(alternative: Alternative, name: str, kernel: Kernel) -> str:
    kind = alternative.how
    if kind.needs and not kernel.dynamic(kind.needs):
        refused = "refuses fentry programs" if kind.needs == "fentry" else f"has no {kind.needs}s"
        return f"this kernel {refused}"
    if not kind.offers:
        return ""
    try:
        offered = getattr(kernel, kind.offers)(name)
    except PermissionError as error:
        return Denied(f"it takes {error.strerror}")
    if offered is None or offered is False:
        what = {"raw_tracepoint": "tracepoint"}.get(kind.offers, kind.offers)
        return f"this kernel has no such {what}"
    if offered is True:
        return ""
    if kind.typed and not kernel.typed(name):
        return "this kernel does not know the types of its parameters"
    return _missing_arguments(alternative.needed, offered)


def _missing_arguments(needed: Sequence[Sequence[str]], offered: Collection[str]) -> str:
    missing = [names[0] for names in needed if not any(name in offered for name in names)]
    return f"it lacks {', '.join(missing)} here" if missing else ""


def _check_forced(probes: Sequence[Probe], forced: Mapping[str, str]) -> None:
    known = {probe.name: [a.kind for a in probe.alternatives] for probe in probes}
    for name, kind in forced.items():
        if kind not in known.get(name, ()):
            offers = "; ".join(f"{n}={'|'.join(kinds)}" for n, kinds in known.items())
            raise UsageError(f"--probe: there is no {name}={kind}", f"there is: {offers}")
