"""Names of cgroups: systemd units, pods and containers, from paths and the runtimes' files."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from netbpf.kernel import cgroups, container_names, workloads
from netbpf.kernel.container_names import ContainerName, name_of
from netbpf.kernel.workloads import names_of, pod_of, units_of

WEB, DB = "ab" * 32, "ac" + "0" * 62
UID = "0b7632a2-a56e-4278-987a-22de18008dbe"
STATIC = "5f3c1a3e0c4e7a3d2b1f0e9d8c7b6a59"
OTHER = UID.replace("-", "_")


@pytest.mark.parametrize(
    ("path", "unit", "user_unit"),
    [
        # The cases of systemd's test-cgroup-util.c, and the slice where that has none.
        ("/system.slice/foobar.service/sdfdsaf", "foobar.service", None),
        ("/system.slice/getty@tty6.service/tty5", "getty@tty6.service", None),
        ("/system.slice/getty####@tty6.service/xxx", "system.slice", None),
        ("/system.slice/system-waldo.slice/_cpu.service/sdfdsaf", "cpu.service", None),
        ("/user.slice/user-1000.slice/user@.service/server.service", "user-1000.slice", None),
        ("/user.slice/user-1000.slice/user@1000.service/server.service", "user@1000.service",
         "server.service"),
        ("/user.slice/user-1000.slice/user@1000.service/foobar.slice/foobar@pie.service",
         "user@1000.service", "foobar@pie.service"),
        ("/user.slice/user-1000.slice/user@1000.service/init.scope", "user@1000.service",
         "init.scope"),
        ("/user.slice/user-1000.slice/user@1000.service", "user@1000.service", None),
        ("/capsule.slice/capsule@test.service/app.slice/run-p9-i1.service", "capsule@test.service",
         "run-p9-i1.service"),
        ("/user.slice/user-1000.slice/session-2.scope", "session-2.scope", None),
        ("/system.slice", "system.slice", None),
        ("/init.scope", "init.scope", None),
        (f"/system.slice/docker-{WEB}.scope/system.slice/nginx.service", f"docker-{WEB}.scope",
         None),
        ("/docker/x", None, None),
        ("/a\x1b[31m.service", None, None),
        (f"/{'x' * 300}.service", None, None),
        ("/x\udcff.service", None, None),
        ("", None, None),
    ],
)  # fmt: skip
def test_units_are_those_of_systemd(path, unit, user_unit):
    assert units_of(path) == (unit, user_unit)


@pytest.mark.parametrize(
    ("path", "pod"),
    [
        (f"/kubepods/burstable/pod{UID}/{WEB}", UID),
        (f"/kubepods/pod{UID}", UID),
        (f"/kubepods.slice/kubepods-pod{OTHER}.slice/crio-{WEB}.scope", UID),
        (f"/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{OTHER}.slice", UID),
        (f"/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod{OTHER}.slice", UID),
        (f"/kubepods-burstable-pod{OTHER}.slice:cri-containerd:{WEB}", UID),
        (f"/kubepods/besteffort/pod{STATIC}/{WEB}", STATIC),
        (f"/docker/pod{UID}", None),
        (f"/kubepods/pod{UID}x", None),
        ("/system.slice/podman.service", None),
    ],
)
def test_pod_is_read_from_a_cgroups_path(path, pod):
    assert pod_of(path) == pod


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Write state files below a directory instead of the root; they belong to root."""
    for name in ("_CONTAINERD", "_STORAGE"):
        roots = tuple(f"{tmp_path}{root}" for root in getattr(container_names, name))
        monkeypatch.setattr(container_names, name, roots)
    monkeypatch.setattr(container_names, "_DOCKER", f"{tmp_path}/var/lib/docker")
    monkeypatch.setattr(container_names, "_DOCKER_CONFIG", f"{tmp_path}/etc/docker/daemon.json")
    monkeypatch.setattr(container_names, "_OWNER", os.geteuid())
    container_names.forget_lists()

    def write(path: str, value: Any) -> Path:
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(value if isinstance(value, bytes) else json.dumps(value).encode())
        file.chmod(0o600)
        return file

    return write


TASK = f"run/containerd/io.containerd.runtime.v2.task/k8s.io/{WEB}/config.json"
CRIO = f"run/containers/storage/overlay-containers/{WEB}/userdata/config.json"
DOCKER = f"var/lib/docker/containers/{WEB}/config.v2.json"
LIST = "var/lib/containers/storage/overlay-containers/containers.json"
IN_POD = {"io.kubernetes.pod.namespace": "shop", "io.kubernetes.pod.name": "web-1"}
LABELS = {**IN_POD, "io.kubernetes.container.name": "nginx"}
CRI = {
    "io.kubernetes.cri.sandbox-namespace": "shop",
    "io.kubernetes.cri.sandbox-name": "web-1",
    "io.kubernetes.cri.container-name": "nginx",
}
POD = ContainerName("nginx", "shop/web-1")


@pytest.mark.parametrize(
    ("path", "value", "names"),
    [
        (DOCKER, {"ID": WEB, "Name": "/web", "Config": {"Labels": {"a": "b"}}}, ("web", None)),
        (DOCKER, {"Name": "/k8s_nginx_web", "Config": {"Labels": LABELS}}, POD),
        (TASK, {"annotations": CRI}, POD),
        (TASK, {"annotations": dict(list(CRI.items())[:2])}, (None, "shop/web-1")),
        (TASK.replace("k8s.io", "default"), {"annotations": {"nerdctl/name": "w"}}, ("w", None)),
        (TASK.replace("run/containerd", "run/k3s/containerd"), {"annotations": CRI}, POD),
        (CRIO, {"annotations": LABELS}, POD),
        (LIST, [{"id": DB, "names": ["db"]}, {"id": WEB, "names": ["web"]}], ("web", None)),
        (LIST.replace("/containers.", "/volatile-containers."), [{"id": WEB, "names": ["w"]}],
         ("w", None)),
        (LIST.replace("var/lib", "run").replace("overlay", "vfs"), [{"id": WEB, "names": ["w"]}],
         ("w", None)),
    ],
)  # fmt: skip
def test_names_are_in_the_files_of_each_runtime(files, path, value, names):
    assert name_of(WEB) == ContainerName()
    files(path, value)
    assert name_of(WEB) == names
    assert name_of(DB) != names


def test_docker_may_have_its_data_elsewhere(files, tmp_path):
    files("etc/docker/daemon.json", {"data-root": f"{tmp_path}/data"})
    files(f"data/containers/{WEB}/config.v2.json", {"Name": "/web"})
    assert name_of(WEB) == ("web", None)


def test_list_is_read_again_when_it_has_changed(files):
    file = files(LIST, [{"id": DB, "names": ["db"]}])
    assert name_of(WEB) == ContainerName()
    files(LIST, [{"id": DB, "names": ["db"]}, {"id": WEB, "names": ["web"]}])
    assert name_of(WEB) == ("web", None)
    file.unlink()
    assert name_of(WEB) == ContainerName()


@pytest.mark.parametrize(
    "damage",
    [
        b"", b"{", b"\xff\xfe\x00", b"null", b"[]", b"7", b'"x"', b"[" * 100_000, b"9" * 10_000,
        b'{"annotations": 7, "Config": 7, "Name": 7}', b'{"annotations": {"nerdctl/name": 7}}',
        b'{"Name": "/a\\u001b[31m"}', b'{"Name": "/\\ud800"}', b'{"Name": "/../../etc"}',
        b'{"Name": "/"}', b'{"Name": ""}', b'{"Name": "/' + b"x" * 300 + b'"}',
        b'{"annotations": {"io.kubernetes.pod.namespace": "a", "io.kubernetes.pod.name": "/"}}',
        b'[{"id": 7, "names": ["x"]}, 7, {"names": 7}, {"id": "%s", "names": [7]}]' % WEB.encode(),
    ],
)  # fmt: skip
@pytest.mark.parametrize("path", [DOCKER, TASK, CRIO, LIST])
def test_damaged_files_have_no_names(files, path, damage):
    files(path, damage)
    assert name_of(WEB) == ContainerName()


def test_files_that_others_could_have_written_are_not_read(files, monkeypatch):
    file = files(DOCKER, {"Name": "/web"})
    file.chmod(0o622)
    assert name_of(WEB) == ContainerName()
    file.chmod(0o600)
    assert name_of(WEB) == ("web", None)
    monkeypatch.setattr(container_names, "_OWNER", os.geteuid() + 1)
    assert name_of(WEB) == ContainerName()


def test_other_files_are_not_read(files, monkeypatch, tmp_path):
    file = files(DOCKER, {"Name": "/web"})
    monkeypatch.setattr(container_names, "_MAX_SIZE", file.stat().st_size - 1)
    assert name_of(WEB) == ContainerName()
    file.unlink()
    os.mkfifo(file)
    assert name_of(WEB) == ContainerName()


# --- by the id of a cgroup ------------------------------------------------------------------------


@pytest.fixture
def hierarchy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Make cgroups, and return their ids."""
    root = tmp_path / "cgroups"
    monkeypatch.setattr(cgroups, "cgroup_root", lambda: str(root))
    cgroups.forget_paths()
    workloads.forget_names()

    def make(path: str) -> int:
        (root / path).mkdir(parents=True)
        return (root / path).stat().st_ino

    yield make
    cgroups.forget_paths()
    workloads.forget_names()


def test_all_names_of_a_cgroup(files, hierarchy):
    files(TASK, {"annotations": CRI})
    scope = f"cri-containerd-{WEB}.scope"
    assert names_of(hierarchy(f"kubepods.slice/kubepods-pod{OTHER}.slice/{scope}")) == {
        "container": WEB,
        "container_name": "nginx",
        "pod": "shop/web-1",
        "pod_uid": UID,
        "unit": scope,
        "user_unit": None,
    }
    assert set(names_of(2**63).values()) == {None}


@pytest.mark.parametrize(
    "path",
    [
        f"user.slice/user-7.slice/user@7.service/user.slice/docker-{WEB}.scope",
        f"system.slice/docker-{DB}.scope/docker-{WEB}.scope",
    ],
)
def test_a_cgroup_that_others_could_have_made_gets_no_name_of_roots_containers(
    files, hierarchy, path
):
    for identity in (WEB, DB):
        files(DOCKER.replace(WEB, identity), {"Name": "/web"})
    names = names_of(hierarchy(path))
    assert (names["container"], names["container_name"]) == (WEB, None)


def test_files_are_read_once_per_cgroup(files, hierarchy):
    file = files(DOCKER, {"Name": "/web"})
    cgroup = hierarchy(f"system.slice/docker-{WEB}.scope")
    assert names_of(cgroup)["container_name"] == "web"
    file.unlink()
    assert names_of(cgroup)["container_name"] == "web"


def test_what_was_not_looked_up_for_lack_of_time_is_looked_up_later(files, hierarchy, monkeypatch):
    files(DOCKER, {"Name": "/web"})
    cgroup = hierarchy(f"system.slice/docker-{WEB}.scope")
    monkeypatch.setattr(container_names._credit, "_left", -1e9)  # noqa: SLF001
    assert names_of(cgroup)["container_name"] is None
    assert names_of(cgroup)["container"] == WEB
    container_names.forget_lists()
    assert names_of(cgroup)["container_name"] == "web"
