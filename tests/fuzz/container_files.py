"""State files of container runtimes, and paths of cgroups."""

from __future__ import annotations

import json
from unittest import mock

from netbpf.kernel import container_names, workloads
from netbpf.kernel.cgroups import containers_of
from netbpf.kernel.container_names import ContainerName
from tests.fuzz.damage import mutated
from tests.fuzz.target import Target

ID = "5eed" * 16
POD = {"io.kubernetes.pod.namespace": "shop", "io.kubernetes.pod.name": "web-1"}
FILES = [
    json.dumps(value).encode()
    for value in (
        {"ID": ID, "Name": "/web", "Config": {"Labels": {**POD}}},
        {"annotations": {**POD, "io.kubernetes.container.name": "nginx"}},
        {"annotations": {"nerdctl/name": "web"}},
        [{"id": ID, "names": ["web"], "metadata": "{}"}],
        {"data-root": "/srv/docker"},
    )
]
PATHS = [
    f"/kubepods.slice/kubepods-pod0b7632a2_a56e_4278_987a_22de18008dbe.slice/crio-{ID}.scope",
    f"/system.slice/docker-{ID}.scope/system.slice/_cgroup.service",
    "/user.slice/user-7.slice/user@7.service/app.slice/web@1.service",
]


def state_file(data: bytes) -> None:
    """Whatever a file has, a name has only characters of names."""

    def read(path: str, most: int = 0) -> object:
        try:
            return json.loads(data)
        except (ValueError, RecursionError):
            return None

    with (
        mock.patch.object(container_names, "_read", read),
        mock.patch.object(container_names, "glob", lambda path: ["containers.json"]),
        mock.patch.object(container_names.os, "listdir", lambda path: ["k8s.io"]),
    ):
        container_names.forget_lists()
        found = container_names.name_of(ID)
    container_names.forget_lists()
    assert isinstance(found, ContainerName)
    for part in (found.name, *(found.pod or "").split("/")):
        assert not part or (part.isascii() and part.isprintable() and "/" not in part)


def cgroup_path(data: bytes) -> None:
    """Names in a path have only characters of names."""
    path = data.decode("utf-8", "surrogateescape")
    for name in (*workloads.units_of(path), workloads.pod_of(path), *containers_of(path)):
        assert not name or (name.isascii() and name.isprintable() and "/" not in name)


TARGETS = (
    Target("container-files", mutated(FILES), state_file),
    Target("cgroup-path", mutated([path.encode() for path in PATHS]), cgroup_path),
)
