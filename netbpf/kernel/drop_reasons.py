"""Names of the kernel's packet drop reasons, from the enums of the running kernel."""

from __future__ import annotations

from typing import Optional, Union

from netbpf.kernel.btf import Btf
from netbpf.kernel.known_types import KnownTypes

_CORE, _SUBSYSTEMS = "SKB_DROP_REASON_", "SKB_DROP_REASON_SUBSYS_"
# Subsystems have their own enums, in the module if they are built as one: (module, enum).
_ENUMS = (("mac80211", "mac80211_drop_reason"), ("openvswitch", "ovs_drop_reason"))


class DropReasons:
    """Names of the values of enum skb_drop_reason (since 5.17) and of its subsystems (since 6.4).

    The high 16 bits of a reason are the subsystem's number, 0 for the network core.
    """

    def __init__(self, btf: Union[Btf, KnownTypes]) -> None:
        """Read the enum from the running kernel's types."""
        self._btf = btf
        reasons = btf.enumerators("skb_drop_reason")
        self._core = {
            number: name[len(_CORE) :] if name.startswith(_CORE) else name[len("SKB_") :]
            for name, number in reasons.items()
            if number >= 0 and name not in (f"{_CORE}MAX", f"{_CORE}SUBSYS_MASK")
        }
        self._others: Optional[dict[int, str]] = None

    @property
    def known(self) -> dict[str, int]:
        """Return {name: number} of the core's reasons; empty if this kernel has no reasons."""
        return {name: number for number, name in self._core.items()}

    def name(self, number: int) -> str:
        """Return the reason's name without SKB_DROP_REASON_; "SUBSYSTEM:number" if it has none."""
        if not number >> 16:
            return self._core.get(number, str(number))
        if self._others is None:
            self._others = self._read_others()
        subsystems = self._btf.enumerators("skb_drop_reason_subsys")
        prefixes = {value: key[len(_SUBSYSTEMS) :] for key, value in subsystems.items()}
        unnamed = f"{prefixes.get(number >> 16, number >> 16)}:{number & 0xFFFF}"
        return self._others.get(number, unnamed)

    def _read_others(self) -> dict[int, str]:
        names: dict[int, str] = {}
        for module, enum in _ENUMS:
            numbers = self._btf.enumerators(enum)
            if not numbers and (types := self._btf.module(module)):
                numbers = types.enumerators(enum)
            names.update({number & 0xFFFFFFFF: name for name, number in numbers.items()})
        return names
