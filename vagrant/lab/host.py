"""What a source tree's runs leave on this host, which is taken away again: machines and images.

Before a run makes any it writes down which images there are (`Before`). What is there in addition
when it ends is its own and goes. A run that was killed leaves that file behind, and the next one
cleans up from it first. What the runs of several trees use together is in `shared`.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict, dataclass, field
from typing import Optional

from .libvirt import (
    POOL,
    PREFIX,
    WORK,
    others_machines,
    our_domains,
    remove_machine,
    virsh,
    volumes,
)
from .processes import say
from .rows import PROJECT

STATE = WORK / "before.json"


@dataclass
class Before:
    """What was there before a run: all of it is somebody else's."""

    volumes: list[str] = field(default_factory=list)

    def write(self) -> None:
        """Keep this for the run that cleans up."""
        STATE.write_text(json.dumps(asdict(self), indent=1) + "\n")


def prepare() -> Before:
    """Write down what libvirt, which answers, has already."""
    before = Before(volumes())
    before.write()
    return before


def left_behind() -> Optional[Before]:
    """Return what an earlier run wrote down and did not clean up, if there is one."""
    try:
        return Before(**json.loads(STATE.read_text()))
    except (OSError, ValueError, TypeError):
        return None


def remove_volumes(before: Before, machine: str = "") -> None:
    """Remove images of this run: those of one machine, or all; none that another is based on."""
    in_use = "".join(virsh("dumpxml", name) for name in others_machines("--all"))
    ours = [name for name in volumes() if name.startswith(PREFIX) and name not in before.volumes]
    ours = [name for name in ours if f"/{name}'" not in in_use]
    if machine:
        box = f"{PREFIX}VAGRANTSLASH-{machine}_vagrant_box_image_"
        ours = [name for name in ours if name == f"{PREFIX}{machine}.img" or name.startswith(box)]
    # A machine's disk comes before the box's image that it is based on.
    for name in sorted(ours, key=lambda name: "_vagrant_box_image_" in name):
        others = [other for other in volumes() if other != name]
        if not any(f"/{name}<" in virsh("vol-dumpxml", other, POOL) for other in others):
            virsh("vol-delete", name, POOL)


def clean_up(before: Before) -> None:
    """Take away machines and images that came since `before`, or say what stays."""
    for name in our_domains():
        remove_machine(name)
    remove_volumes(before)
    left = our_domains()
    if left:
        say(f"error: could not remove: {' '.join(left)}")
        return
    for name in ("dot", "home/boxes", "home/tmp"):
        shutil.rmtree(WORK / name, ignore_errors=True)
    STATE.unlink(missing_ok=True)


def give_to_owner() -> None:
    """Give what root wrote into the source tree to the owner of that, who must be able to clean."""
    owner = PROJECT.stat()
    for top in (PROJECT / "build", PROJECT / "vagrant" / "boxes"):
        for directory, _, files in os.walk(top):
            for path in (directory, *(os.path.join(directory, name) for name in files)):
                os.chown(path, owner.st_uid, owner.st_gid, follow_symlinks=False)
