"""The names of a cgroup: systemd unit, container, Kubernetes pod.

Forms of cgroup paths with the cgroupfs and the systemd driver, the same in all versions of cgroups.
ID is 64 hexadecimal digits, UID the uid of a pod, under systemd with "_" for "-" (kubelet's
pkg/kubelet/cm, the cgroup managers of runc and crun):

    docker        /docker/ID                    /system.slice/docker-ID.scope
    podman        /libpod_parent/libpod-ID      /machine.slice/libpod-ID.scope/container
    containerd    /NAMESPACE/ID                 /system.slice/nerdctl-ID.scope
    Kubernetes    /kubepods/burstable/podUID/ID
                  /kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podUID.slice/
                  with cri-containerd-ID.scope, crio-ID.scope or docker-ID.scope
                  /kubepods-podUID.slice:cri-containerd:ID if the drivers differ
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from netbpf.kernel.cgroups import container_of, containers_of, find_path
from netbpf.kernel.container_names import name_of

Names = Mapping[str, "str | None"]

_UNIT = re.compile(
    r"(?!.*@\.[a-z]+$)[A-Za-z0-9:_.\\@-]{1,247}\.(?:service|scope|socket|mount|swap|slice)"
)
_MANAGER = re.compile(r"user@[0-9]+\.service|capsule@[A-Za-z0-9:_.\\-]+\.service")
_OF_USER = re.compile(r"/user-[0-9]+\.slice(?:/|$)|/capsule\.slice(?:/|$)")
# Static pods have a hash of 32 digits.
_POD = re.compile(
    r"kubepods(?:[-./][a-z.]+)*[-/]pod"
    r"([0-9a-f]{8}(?:[-_][0-9a-f]{4}){3}[-_][0-9a-f]{12}|[0-9a-f]{32})(?=\.slice|[/:]|$)"
)
_UNKNOWN: Names = dict.fromkeys(
    ("container", "container_name", "pod", "pod_uid", "unit", "user_unit")
)
_MAX_CGROUPS = 1 << 16

_known: dict[int, Names] = {}


def names_of(cgroup: int) -> Names:
    """Return {column: name or None} of the cgroup with this id.

    The columns are container (its id), container_name, pod (namespace/name), pod_uid, unit and
    user_unit.
    """
    names = _known.get(cgroup)
    return _find(cgroup) if names is None else names


def forget_names() -> None:
    """Forget the names of all cgroups."""
    _known.clear()


def _find(cgroup: int) -> Names:
    path = find_path(cgroup)
    if path is None:
        return _UNKNOWN
    unit, user_unit = units_of(path)
    names: dict[str, str | None] = dict(_UNKNOWN)
    names.update(
        container=container_of(path) or None, pod_uid=pod_of(path), unit=unit, user_unit=user_unit
    )
    identity = _trusted_container(path)
    if identity:
        found = name_of(identity)
        if found is None:
            return names
        names.update(container_name=found.name, pod=found.pod)
    if len(_known) >= _MAX_CGROUPS:
        _known.clear()
    _known[cgroup] = names
    return names


def _trusted_container(path: str) -> str:
    """Return the id of the container that root's runtimes have made at a path, "" if none.

    Users can make cgroups with any name below those of their sessions, and containers below their
    own, when these are delegated to them.
    """
    inside = containers_of(path)
    return inside[0] if len(inside) == 1 and not _OF_USER.search(path) else ""


def units_of(path: str) -> tuple[str | None, str | None]:
    """Return the systemd unit of a cgroup's path, and the unit of a user's service manager in it.

    As cg_path_get_unit() and cg_path_get_user_unit() of systemd, which the journal's fields
    _SYSTEMD_UNIT and _SYSTEMD_USER_UNIT have; a cgroup that is in no other unit has its slice.
    """
    parts = [unescaped(part) for part in path.split("/") if part]
    unit, rest = _first_unit(parts)
    if unit and _MANAGER.fullmatch(unit):
        return unit, _first_unit(rest)[0]
    return unit, None


def _first_unit(parts: list[str]) -> tuple[str | None, list[str]]:
    unit = None
    for index, part in enumerate(parts):
        if not _UNIT.fullmatch(part):
            break
        unit = part
        if not part.endswith(".slice"):
            return unit, parts[index + 1 :]
    return unit, []


def unescaped(part: str) -> str:
    """Return the name of a unit's directory without systemd's escape (cg_unescape())."""
    return part[1:] if part.startswith("_") else part


def pod_of(path: str) -> str | None:
    """Return the uid of the Kubernetes pod in a cgroup's path."""
    found = _POD.findall(path)
    return str(found[-1]).replace("_", "-") if found else None
