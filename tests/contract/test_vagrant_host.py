"""Rule: `make vm` removes what it created, and nothing that another run or user needs.

Without libvirt: virsh and the daemons are fakes; files, locks and processes are real.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.contract.conventions import ROOT

# Not part of a package, because it runs with the system's Python.
sys.path.insert(0, str(ROOT / "vagrant"))
from lab import host, libvirt, processes, shared  # noqa: E402

# --- machines and images of a source tree --------------------------------------------------------


class Virsh:
    """A fake virsh with machines and images of two source trees, a network and a pool."""

    def __init__(self, running=()):
        self.running = list(running)
        self.removed = []
        self.daemons = False

    def __call__(self, *words):
        if words[0] in ("destroy", "undefine", "vol-delete", "net-destroy", "pool-destroy"):
            self.removed.append(words[:2])
            return ""
        if words[0] == "dumpxml":
            tree = str(libvirt.WORK) if words[1] == "netbpf-vm-bookworm" else "/elsewhere/build/vm"
            image = f"<source file='/images/{words[1]}.img'/>"
            return f"<domain>{image}<source path='{tree}/x.serial'/></domain>"
        if words[0] == "vol-list":
            left = [f"{name}.img" for name in ("netbpf-vm-bookworm", "netbpf-vm-sid")]
            return "\n".join(name for name in left if ("vol-delete", name) not in self.removed)
        if words[0] == "list":
            return "\n".join(name for name in self.running if ("destroy", name) not in self.removed)
        if words[0] == "net-dumpxml":
            used = " connections='1'" if self("list") else ""
            return f"<network{used}><bridge name='virbr9'/></network>"
        if words[0] == "net-list" and self.daemons:
            networks = ["default", *(["netbpf-vm-none"] if self.running else [])]
            return "\n".join(x for x in networks if ("net-destroy", x) not in self.removed)
        return ""


@pytest.fixture
def virsh(tmp_path, monkeypatch):
    virsh = Virsh()
    for module in (host, libvirt, shared):
        monkeypatch.setattr(module, "virsh", virsh)
    monkeypatch.setattr(host, "WORK", tmp_path / "work")
    monkeypatch.setattr(libvirt, "WORK", tmp_path / "work")
    monkeypatch.setattr(host, "STATE", tmp_path / "before.json")
    return virsh


def test_next_run_finds_the_record_of_a_killed_run(virsh):
    assert host.left_behind() is None
    before = host.prepare()
    assert before.volumes == ["netbpf-vm-bookworm.img", "netbpf-vm-sid.img"]
    assert host.left_behind() == before
    host.STATE.write_text("{half")
    assert host.left_behind() is None


@pytest.mark.parametrize("others", [(), ("netbpf-vm-sid",)])
def test_machines_of_another_source_tree_and_their_images_stay(others, virsh):
    virsh.running = ["netbpf-vm-bookworm", *others]
    host.clean_up(host.Before())
    removed = [("destroy", "netbpf-vm-bookworm"), ("vol-delete", "netbpf-vm-bookworm.img")]
    assert set(removed) <= set(virsh.removed)
    assert (("vol-delete", "netbpf-vm-sid.img") in virsh.removed) is not bool(others)
    assert ("destroy", "netbpf-vm-sid") not in virsh.removed


def test_existing_images_stay(virsh):
    host.clean_up(host.Before(volumes=["netbpf-vm-sid.img"]))
    assert ("vol-delete", "netbpf-vm-sid.img") not in virsh.removed


# --- resources shared by runs --------------------------------------------------------------------


@pytest.fixture
def lab(virsh, tmp_path, monkeypatch):
    """A host without running libvirt daemons; the firewall is not touched."""

    def start(directory):
        virsh.daemons = True
        (directory / "started").touch()

    def stop(directory):
        ours, virsh.daemons = libvirt.is_ours(directory), False
        (directory / "started").unlink(missing_ok=True)
        return ours

    monkeypatch.setattr(shared, "SHARED", tmp_path / "shared")
    monkeypatch.setattr(libvirt, "answers", lambda: virsh.daemons)
    monkeypatch.setattr(libvirt, "start_daemons", start)
    monkeypatch.setattr(libvirt, "stop_daemons", stop)
    monkeypatch.setattr(libvirt, "is_ours", lambda directory: (directory / "started").exists())
    monkeypatch.setattr(shared, "_restore_firewall", lambda found: None)
    return virsh


def left_in(directory):
    return sorted(path.name for path in directory.iterdir() if path.name not in ("gate", "users"))


def test_daemons_end_with_the_run_that_started_them(lab):
    share = shared.Share()
    share.enter()
    assert lab.daemons
    share.enter()
    share.leave()
    assert not lab.daemons
    assert ("net-destroy", "default") in lab.removed, "the daemon autostarted it"
    assert left_in(shared.SHARED) == []


def test_only_the_last_of_several_runs_stops_daemons(lab, capsys):
    runs = [shared.Share() for _ in range(3)]
    for run in runs:
        run.enter()
    for run in runs[:2]:
        run.leave()
        assert lab.daemons, "a run may be between two machines"
    assert "another run is active" in capsys.readouterr().err
    runs[2].leave()
    assert not lab.daemons


def test_a_run_that_comes_later_starts_them_again(lab):
    for _ in range(2):
        share = shared.Share()
        share.enter()
        assert lab.daemons
        share.leave()
        assert not lab.daemons


def test_daemons_stay_while_a_machine_runs_and_a_later_run_stops_them(lab, capsys):
    share = shared.Share()
    share.enter()
    lab.running = ["netbpf-vm-sid"]
    share.leave()
    assert lab.daemons
    assert "keeps running for: netbpf-vm-sid" in capsys.readouterr().err
    assert ("net-destroy", "netbpf-vm-none") not in lab.removed
    lab.running = []
    # `make vm-clean` in another tree.
    shared.Share().leave()
    assert not lab.daemons
    assert left_in(shared.SHARED) == []


def test_killed_run_does_not_keep_daemons_running(lab):
    words = (
        "import sys, pathlib; sys.path.insert(0, sys.argv[1]); from lab import libvirt, shared"
        "; shared.SHARED = pathlib.Path(sys.argv[2]); libvirt.answers = lambda: True"
        "; libvirt.virsh = shared.virsh = lambda *words: ''"
        "; share = shared.Share(); share.enter(); print('in', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", words, str(ROOT / "vagrant"), str(shared.SHARED)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe) as child:
        assert child.stdout.readline() == b"in\n"
        share = shared.Share()
        share.enter()
        share.leave()
        assert lab.daemons, "the other run is active"
        child.kill()
        child.wait()
    shared.Share().leave()
    assert not lab.daemons


def test_existing_daemons_and_networks_stay(lab):
    lab.daemons = True
    share = shared.Share()
    share.enter()
    share.leave()
    assert not [words for words in lab.removed if words[0] == "net-destroy"]
    assert left_in(shared.SHARED) == []


def test_waiting_for_another_run_can_be_interrupted(lab, monkeypatch):
    def stop():
        raise processes.Stopped

    monkeypatch.setattr(shared, "check", stop)
    shared.SHARED.mkdir()
    with (shared.SHARED / "gate").open("a") as gate:
        assert shared._locked(gate)
        with pytest.raises(processes.Stopped):
            shared.Share().enter()
    assert not lab.daemons


def test_process_with_a_reused_pid_is_not_stopped(tmp_path):
    with subprocess.Popen(["sleep", "60"]) as child:
        # A pid may have been reused since the daemon exited.
        (tmp_path / "libvirtd.pid").write_text(str(child.pid))
        assert not libvirt.is_ours(tmp_path)
        assert not libvirt.stop_daemons(tmp_path)
        assert child.poll() is None
        child.kill()


# --- firewall ------------------------------------------------------------------------------------

RULES = """*nat
:POSTROUTING ACCEPT [0:0]
{nat}COMMIT
*filter
:INPUT ACCEPT [0:0]
:DOCKER - [0:0]
:LIBVIRT_INP - [0:0]
-A INPUT -j LIBVIRT_INP
-A INPUT -p tcp -j DOCKER
{filter}COMMIT
"""
NOTHING = "*filter\n:INPUT ACCEPT [0:0]\n:DOCKER - [0:0]\n-A INPUT -p tcp -j DOCKER\nCOMMIT\n"
NAT = ":LIBVIRT_PRT - [0:0]\n-A POSTROUTING -j LIBVIRT_PRT\n"


def test_only_new_chains_without_rules_are_removed():
    now = RULES.format(nat=NAT, filter="")
    assert shared.chain_commands("iptables", NOTHING, now) == [
        ["iptables", "-t", "nat", "-D", "POSTROUTING", "-j", "LIBVIRT_PRT"],
        ["iptables", "-t", "nat", "-X", "LIBVIRT_PRT"],
        ["iptables", "-t", "filter", "-D", "INPUT", "-j", "LIBVIRT_INP"],
        ["iptables", "-t", "filter", "-X", "LIBVIRT_INP"],
    ]


def test_existing_and_used_chains_stay():
    assert shared.chain_commands("iptables", RULES.format(nat="", filter=""), NOTHING) == []
    same = RULES.format(nat=NAT, filter="")
    assert shared.chain_commands("iptables", same, same) == []
    used = RULES.format(nat="", filter="-A LIBVIRT_INP -i virbr0 -p udp -j ACCEPT\n")
    assert shared.chain_commands("ip6tables", NOTHING, used) == []
