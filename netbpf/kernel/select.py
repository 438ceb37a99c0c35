"""Select probe alternatives: a pure function of a declaration and a kernel."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple, Optional

from netbpf.declare.probes import Alternative, Probe
from netbpf.errors import PrivilegeError, Unsupported, UsageError
from netbpf.kernel.inspect import Kernel
from netbpf.system.privileges import Denied

_WORDS = {
    "raw_tracepoint": "tracepoint",
    "cgroup_hook": "cgroup hook, or this process cannot reach the root of all cgroups",
}
_PREEMPTIBLE = "preemptible on this kernel, so events can be missed"
Excluded = Mapping[tuple[str, str], str]  # (probe, kind) -> why the kernel refused it at run time


class Selection(NamedTuple):
    """The alternative selected for a probe, and its targets.

    `alternative` is None if an optional probe has none; `rejected` holds (description, reason) of
    every better alternative. `redundant`: the probe is not needed, as its companion already sees
    every event.
    """

    probe: Probe
    alternative: Optional[Alternative]
    targets: tuple[str, ...]
    rejected: tuple[tuple[str, str], ...]
    redundant: bool = False

    @property
    def kind(self) -> str:
        """The kind of the alternative, "" for none."""
        return self.alternative.kind if self.alternative else ""

    @property
    def entry(self) -> str:
        """The name of the C entry."""
        return f"{self.probe.name}_{self.kind}"

    @property
    def programs(self) -> tuple[tuple[str, tuple[str, ...]], ...]:
        """(name, targets) of the programs to load; fentry and fexit programs have one target."""
        if not self.alternative:
            return ()
        if not self.alternative.how.typed or not self.targets:
            return ((self.entry, self.targets),)
        more = ((f"{self.entry}:{target}", (target,)) for target in self.targets[1:])
        return ((self.entry, self.targets[:1]), *more)

    @property
    def denied(self) -> str:
        """The reason if a missing privilege makes events or columns missing, else ""."""
        if self.redundant or (self.alternative and not self.alternative.loses):
            return ""
        return next((why for _, why in self.rejected if isinstance(why, Denied)), "")

    @property
    def lost_columns(self) -> tuple[str, ...]:
        """The columns that stay empty with this selection."""
        return self.alternative.loses if self.alternative else self.probe.loses


def select(
    probes: Sequence[Probe],
    kernel: Kernel,
    excluded: Optional[Excluded] = None,
    forced: Optional[Mapping[str, str]] = None,
) -> list[Selection]:
    """Return the selection for each probe; raise Unsupported if a required one has none.

    Raises PrivilegeError instead if a missing privilege is the reason.

    `excluded` are alternatives that failed at run time, `forced` maps the name of a probe to the
    only kind allowed for it.
    """
    _check_forced(probes, forced or {})
    selections: dict[str, Selection] = {}
    for probe in probes:
        partner = selections.get(probe.with_probe or probe.complements)
        usable = _compatible(probe, partner) if partner else probe.alternatives
        if usable:
            selections[probe.name] = _choose(probe, usable, kernel, excluded or {}, forced or {})
        else:
            assert partner
            selections[probe.name] = _unused(probe, partner)
    return list(selections.values())


def missing(alternative: Alternative, kernel: Kernel) -> tuple[tuple[str, ...], str]:
    """Return (targets, "") that `alternative` can use, or ((), reason) if it can use none."""
    usable, reason = [], ""
    for name in alternative.names or ("",):  # uprobes may find their targets at run time
        why = _missing_target(alternative, name, kernel)
        if not why:
            usable.append(name)
            if not alternative.every:
                break
        reason = reason or why
    return tuple(filter(None, usable)), "" if usable else reason


def _compatible(probe: Probe, partner: Selection) -> list[Alternative]:
    if probe.complements:
        return [one for one in probe.alternatives if one.kind != partner.kind]
    begins = partner.alternative.how.begins if partner.alternative else ()
    return [one for one in probe.alternatives if one.kind in (partner.kind, *begins)]


def _unused(probe: Probe, partner: Selection) -> Selection:
    """Return the selection of a probe that has no alternative compatible with its companion."""
    if partner.alternative:
        return Selection(probe, None, (), ((probe.name, f"covered by {partner.entry}"),), True)
    reason = partner.rejected[-1][1]  # the companion has no alternative either
    return Selection(probe, None, (), ((probe.name, reason),), partner.redundant)


def _choose(
    probe: Probe,
    candidates: Sequence[Alternative],
    kernel: Kernel,
    excluded: Excluded,
    forced: Mapping[str, str],
) -> Selection:
    rejected: list[tuple[str, str]] = []
    for alternative in _ranked(candidates, kernel):
        text = _description(alternative)
        wanted = forced.get(probe.name, alternative.kind)
        if wanted != alternative.kind:
            rejected.append((text, f"--probe asks for {wanted}"))
        elif (probe.name, alternative.kind) in excluded:
            rejected.append((text, excluded[probe.name, alternative.kind]))
        else:
            targets, reason = missing(alternative, kernel)
            if not reason:
                demoted = _demoted(alternative, candidates, kernel)
                return Selection(probe, alternative, targets, (*demoted, *rejected))
            rejected.append((text, reason))
    if probe.optional:
        return Selection(probe, None, (), tuple(rejected))
    denied = [why for _, why in rejected if isinstance(why, Denied)]
    if denied:
        raise PrivilegeError(
            f"probe '{probe.name}' cannot be attached: {'; '.join(dict.fromkeys(denied))}",
            "run it as root, or grant these privileges; 'netbpf doctor' lists what each tool needs",
        )
    tried = "; ".join(f"{text}: {why}" for text, why in rejected)
    refused = any(name == probe.name for name, _ in excluded)
    raise Unsupported(
        f"kernel {kernel.release} has no usable alternative for probe '{probe.name}' ({tried})",
        "-v shows why the kernel refused the program"
        if refused
        else "run 'netbpf doctor' to see what each tool can use here",
    )


def _ranked(candidates: Sequence[Alternative], kernel: Kernel) -> list[Alternative]:
    """Rank preemptible kinds after non-preemptible ones that fill the same columns.

    The kernel skips a program on a CPU where the same program is active. A task preempted within it
    hides the events of all other tasks until it continues: a few percent of all events on a busy
    CPU. Programs of trace events and kprobes run with preemption disabled.
    """
    return sorted(candidates, key=lambda one: (bool(one.loses), _preemptible(one, kernel)))


def _preemptible(alternative: Alternative, kernel: Kernel) -> bool:
    if alternative.how.preemptible:
        return kernel.preempts("rawtp")
    of_calls = any(name.startswith("syscalls:") for name in alternative.names)
    return of_calls and kernel.preempts("syscalls")


def _demoted(
    chosen: Alternative, candidates: Sequence[Alternative], kernel: Kernel
) -> list[tuple[str, str]]:
    if chosen.loses or _preemptible(chosen, kernel):
        return []  # the preemptible ones were tried before it
    better = candidates[: candidates.index(chosen)]
    return [(_description(one), _PREEMPTIBLE) for one in better if _preemptible(one, kernel)]


def _description(alternative: Alternative) -> str:
    return " ".join((alternative.how.label, *alternative.names[:1]))


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
        return Denied("", str(error.strerror))
    if offered is None or offered is False:
        what = _WORDS.get(kind.offers, kind.offers)
        return f"this kernel has no such {what}"
    if offered is True:
        return ""
    if kind.typed and not kernel.typed(name):
        return "this kernel has no types of its parameters"
    return _missing_arguments(alternative.needed, offered)


def _missing_arguments(needed: Sequence[Sequence[str]], offered: Collection[str]) -> str:
    missing = [names[0] for names in needed if not any(name in offered for name in names)]
    if not missing:
        return ""
    others = ", ".join(name for name in offered if not name.startswith("common_"))
    return f"it has no {', '.join(missing)} on this kernel" + (f", only {others}" if others else "")


def _check_forced(probes: Sequence[Probe], forced: Mapping[str, str]) -> None:
    known = {probe.name: [a.kind for a in probe.alternatives] for probe in probes}
    for name, kind in forced.items():
        if kind not in known.get(name, ()):
            offers = "; ".join(f"{n}={'|'.join(kinds)}" for n, kinds in known.items())
            raise UsageError(f"--probe: there is no {name}={kind}", f"choices: {offers}")
