"""Remove the machines and images that runs of this source tree leave on the host.

A run first records the existing images (`Before`) in a file, and at its end removes all that were
added. A killed run leaves that file behind; the next run uses it to clean up. `shared` handles the
resources that runs of several source trees share.
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
    other_domains,
    own_domains,
    remove_machine,
    virsh,
    volumes,
)
from .processes import notice
from .rows import PROJECT

STATE = WORK / "before.json"


@dataclass
class Before:
    """The images that existed before a run, which it must not remove."""

    volumes: list[str] = field(default_factory=list)

    def write(self) -> None:
        """Save this for the clean-up."""
        STATE.write_text(json.dumps(asdict(self), indent=1) + "\n")


def prepare() -> Before:
    """Record the images that libvirt has; its daemon must be running."""
    before = Before(volumes())
    before.write()
    return before


def left_behind() -> Optional[Before]:
    """Return the record of an earlier run that did not clean up, if any."""
    try:
        return Before(**json.loads(STATE.read_text()))
    except (OSError, ValueError, TypeError):
        return None


def remove_volumes(before: Before, machine: str = "") -> None:
    """Remove images of this run (of one machine, or all), except backing files of other images."""
    in_use = "".join(virsh("dumpxml", name) for name in other_domains("--all"))
    ours = [name for name in volumes() if name.startswith(PREFIX) and name not in before.volumes]
    ours = [name for name in ours if f"/{name}'" not in in_use]
    if machine:
        box = f"{PREFIX}VAGRANTSLASH-{machine}_vagrant_box_image_"
        ours = [name for name in ours if name == f"{PREFIX}{machine}.img" or name.startswith(box)]
    # Remove a machine's disk before the box image that backs it.
    for name in sorted(ours, key=lambda name: "_vagrant_box_image_" in name):
        others = [other for other in volumes() if other != name]
        if not any(f"/{name}<" in virsh("vol-dumpxml", other, POOL) for other in others):
            virsh("vol-delete", name, POOL)


def clean_up(before: Before) -> None:
    """Remove machines and images added since `before`; print an error for those that remain."""
    for name in own_domains():
        remove_machine(name)
    remove_volumes(before)
    left = own_domains()
    if left:
        notice(f"error: could not remove: {' '.join(left)}")
        return
    for name in ("dot", "home/boxes", "home/tmp"):
        shutil.rmtree(WORK / name, ignore_errors=True)
    STATE.unlink(missing_ok=True)


def restore_ownership() -> None:
    """Give files written by root to the owner of the source tree, so that they can be removed."""
    owner = PROJECT.stat()
    for top in (PROJECT / "build", PROJECT / "vagrant" / "boxes"):
        for directory, _, files in os.walk(top):
            for path in (directory, *(os.path.join(directory, name) for name in files)):
                os.chown(path, owner.st_uid, owner.st_gid, follow_symlinks=False)
