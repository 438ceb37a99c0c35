"""Sessions that are older than a run, and the filters that select each: words by option."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from topology import own_cgroup
from traffic import Session

UID = 1001  # of the client over IPv6


class Old(NamedTuple):
    """Sessions that exist before the tool starts: of nb-first over IPv4, of nb-second over IPv6."""

    four: Session
    six: Session


Words = Callable[[Old], tuple[object, ...]]

FOUR: dict[str, Words] = {
    "-4": lambda old: (),
    "-L": lambda old: (old.four.local[1],),
    "-D": lambda old: (old.four.remote[1],),
    "--laddr": lambda old: ("10.91.0.1",),
    "--raddr": lambda old: ("10.91.0.0/24",),
    "--pid": lambda old: (old.four.client.pid,),
    "--comm": lambda old: ("nb-f*",),
    "--uid": lambda old: (0,),
}
SIX: dict[str, Words] = {
    "-6": lambda old: (),
    "-L": lambda old: (old.six.local[1],),
    "-D": lambda old: (old.six.remote[1],),
    "--laddr": lambda old: ("fd00:91::/64",),
    "--raddr": lambda old: ("fd00:91::2",),
    "--pid": lambda old: (old.six.client.pid,),
    "--comm": lambda old: ("nb-second",),
    "--uid": lambda old: (UID,),
    "--cgroup": lambda old: (own_cgroup(old.six.client.pid),),
}
