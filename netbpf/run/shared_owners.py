"""owners - finds the owners of sockets for all tools of a session

Each tool that shows owners needs the same probes, and a map of the owners that they find. In a
session these programs are loaded once. The map is filled before the tools' programs run, and a
socket is removed from it after them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from netbpf.declare.options import NETNS, PROCESS, SOCKET
from netbpf.declare.owners import OWNER_OPTIONS, OWNER_PROBES
from netbpf.declare.probes import Role, tracepoint_probe
from netbpf.declare.states import state_probe
from netbpf.declare.tool import Tool
from netbpf.run.program import OWNERS, may_share_owners

# Not OWNER_PROBES[0], which removes a socket at its last change of state.
_STATE = state_probe("owner_state", role=Role.STATE, call="on_shared_state")
# Exists since 4.16.
_GONE = tracepoint_probe("gone", "tcp:tcp_destroy_sock", ("sk",), ("skaddr",), role=Role.LAST)

_FILTERS = [option.name for option in (*PROCESS, *NETNS, *SOCKET)]

TOOL = Tool(
    __doc__,
    probes=(_STATE, *OWNER_PROBES[1:], _GONE),
    maps=(OWNERS,),
    options=(*PROCESS, *NETNS, *SOCKET, *OWNER_OPTIONS),
)


def shared_settings(members: Sequence[tuple[Tool, Mapping[str, Any]]]) -> dict[str, Any]:
    """Return the settings of these programs in a session of `members`, {} if nothing is shared.

    Owners are shared by two tools or more with the same filters, as a filter decides which owners
    are recorded. The map has room for as many sockets as the largest of the tools' own maps.
    """
    users = [settings for tool, settings in members if may_share_owners(tool, settings)]
    filters = [[settings.get(name) for name in _FILTERS] for settings in users]
    if len(users) < 2 or any(given != filters[0] for given in filters):
        return {}
    shared = {name: users[0].get(name) for name in _FILTERS}
    for option in OWNER_OPTIONS:
        shared[option.name] = any(settings.get(option.name) for settings in users)
    shared["map_entries"] = max(settings["map_entries"] for settings in users)
    return shared
