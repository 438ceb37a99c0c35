"""Names of containers, from the state files of their runtimes.

    docker      containers/ID/config.v2.json in /var/lib/docker or data-root of
                /etc/docker/daemon.json: Name is "/name"; labels of cri-dockerd in Config.Labels
    podman      [volatile-]containers.json in /var/lib/containers/storage/*-containers, and with
                transient storage below /run (containers.go of containers/storage): id, names
    CRI-O       userdata/config.json in /run/containers/storage/*-containers/ID: annotations
                io.kubernetes.pod.namespace, .pod.name and .container.name
    containerd  io.containerd.runtime.v2.task/NAMESPACE/ID/config.json in /run/containerd (of k3s in
                /run/k3s/containerd): annotations io.kubernetes.cri.sandbox-namespace,
                .sandbox-name and .container-name; nerdctl/name

Only files that belong to root and that no other user can write are read, up to a size; opening
never blocks.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Iterator, Mapping
from contextlib import suppress
from glob import glob
from typing import Any, NamedTuple

from netbpf.kernel.credit import Credit
from netbpf.system.untrusted import UnreadableBinary, open_regular

_MAX_SIZE = 1 << 20  # of the file of one container: it has its environment and mounts
_MAX_LIST = 8 << 20  # of the list of all containers
_MAX_NAMESPACES = 16
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,252}")

_OWNER = 0  # of files that are read
_DOCKER, _DOCKER_CONFIG = "/var/lib/docker", "/etc/docker/daemon.json"
_CONTAINERD = ("/run/containerd", "/run/k3s/containerd", "/var/snap/microk8s/common/run/containerd")
_STORAGE = ("/var/lib/containers/storage", "/run/containers/storage")
# (namespace, pod, container) in annotations or labels.
_IN_POD = (
    (
        "io.kubernetes.cri.sandbox-namespace",
        "io.kubernetes.cri.sandbox-name",
        "io.kubernetes.cri.container-name",
    ),
    (
        "io.kubernetes.pod.namespace",
        "io.kubernetes.pod.name",
        "io.kubernetes.container.name",
    ),
)


class ContainerName(NamedTuple):
    """The name of a container, and "namespace/name" of its pod; None if there is none."""

    name: str | None = None
    pod: str | None = None


def name_of(identity: str) -> ContainerName | None:
    """Return the names of the container with this id; None if there is no time to look for them."""
    with _credit.spent() as allowed:
        if not allowed:
            return None
        return next(filter(any, _names(identity)), ContainerName())


def is_named(identity: str, word: str) -> bool:
    """Return whether the container is named so, as "name" or "namespace/pod/name"."""
    names = next(filter(any, _names(identity)), ContainerName())
    return bool(names.name) and word in (names.name, "/".join(filter(None, reversed(names))))


_credit = Credit(share=0.1, most=0.5)
_lists: dict[str, tuple[tuple[int, ...], dict[str, str]]] = {}  # path: (version, {id: name})


def forget_lists() -> None:
    """Forget the lists of containers, and the time that was used."""
    _lists.clear()
    _credit.refill()


def _names(identity: str) -> Iterator[ContainerName]:
    yield _of_docker(identity)
    for path in _specs(identity):
        yield _of_annotations(_object(_read(path)).get("annotations"))
    for storage in _STORAGE:
        for path in sorted(glob(f"{storage}/*-containers/*containers.json")):
            yield ContainerName(_listed(path).get(identity))


def _specs(identity: str) -> Iterator[str]:
    for root in _CONTAINERD:
        tasks = f"{root}/io.containerd.runtime.v2.task"
        with suppress(OSError):
            for namespace in sorted(os.listdir(tasks))[:_MAX_NAMESPACES]:
                yield f"{tasks}/{namespace}/{identity}/config.json"
    for storage in _STORAGE:
        yield from glob(f"{storage}/*-containers/{identity}/userdata/config.json")


def _of_docker(identity: str) -> ContainerName:
    path = f"containers/{identity}/config.v2.json"
    found = _object(_read(f"{_DOCKER}/{path}"))
    if not found:
        root = _object(_read(_DOCKER_CONFIG)).get("data-root")
        found = _object(_read(f"{root}/{path}")) if isinstance(root, str) else found
    in_pod = _of_annotations(_object(found.get("Config")).get("Labels"))
    name = found.get("Name")
    return in_pod if in_pod.pod else ContainerName(_valid(str(name)[1:]) if name else None)


def _of_annotations(annotations: Any) -> ContainerName:
    given = _object(annotations)
    for keys in _IN_POD:
        namespace, pod, name = (_valid(given.get(key)) for key in keys)
        if namespace and pod:
            return ContainerName(name, f"{namespace}/{pod}")
    return ContainerName(_valid(given.get("nerdctl/name")))


def _listed(path: str) -> dict[str, str]:
    """Return {id: name} of a list of containers, which is read again when it has changed."""
    version: tuple[int, ...] = ()
    with suppress(OSError):
        status = os.stat(path)
        version = (status.st_ino, status.st_size, status.st_mtime_ns)
    before, names = _lists.get(path, ((), {}))
    if version != before:
        entries = _read(path, _MAX_LIST)
        names = dict(_pairs(entries if isinstance(entries, list) else []))
        _lists[path] = version, names
    return names


def _pairs(entries: list[Any]) -> Iterator[tuple[str, str]]:
    for entry in map(_object, entries):
        identity, names = entry.get("id"), entry.get("names")
        name = _valid(names[0]) if isinstance(names, list) and names else None
        if isinstance(identity, str) and name:
            yield identity, name


def _object(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _valid(name: Any) -> str | None:
    return name if isinstance(name, str) and _NAME.fullmatch(name) else None


def _read(path: str, most: int = 0) -> Any:
    """Return the JSON value in a file of root, None if there is none."""
    most = most or _MAX_SIZE
    try:
        with open_regular(path) as file:
            status = os.fstat(file.fileno())
            others = stat.S_IWGRP | stat.S_IWOTH
            trusted = status.st_uid == _OWNER and not status.st_mode & others
            if not trusted or status.st_size > most:
                return None
            return json.loads(file.read(most))
    except (OSError, ValueError, RecursionError, UnreadableBinary):
        return None
