"""Read and write BPF maps through their descriptors, as bytes."""

from __future__ import annotations

import ctypes
import errno
import struct
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Optional

from netbpf.system.realtime import realtime_priority
from netbpf.system.syscalls import bpf

_LOOKUP, _UPDATE, _DELETE, _NEXT, _TAKE = 1, 2, 3, 4, 21  # include/uapi/linux/bpf.h

# Entries that are read before other tasks may run: about 0.3 ms.
_BATCH = 64


@lru_cache(maxsize=1)
def possible_cpus() -> int:
    """Return the number of possible CPUs, which is the number of slots of a per-CPU value."""
    last = Path("/sys/devices/system/cpu/possible").read_text().strip().split(",")[-1]
    return int(last.split("-")[-1]) + 1


class Map:
    """A BPF map; a `per_cpu` value has one slot per possible CPU, each padded to 8 bytes."""

    def __init__(self, fd: int, key_size: int, value_size: int, per_cpu: bool = False) -> None:
        """Use the map behind descriptor `fd`; sizes are in bytes."""
        self.fd = fd
        self.key_size = key_size
        self.value_size = value_size
        self.stride = -(-value_size // 8) * 8 if per_cpu else value_size
        self.per_cpu = per_cpu
        self._value = ctypes.create_string_buffer(self.stride * (possible_cpus() if per_cpu else 1))

    @classmethod
    def from_fd(cls, fd: int) -> Map:
        """Return the map (not a per-CPU one) behind `fd`, with the sizes from the kernel."""
        lines = Path(f"/proc/self/fdinfo/{fd}").read_text().splitlines()
        info = {name: value for name, _, value in (line.partition(":") for line in lines)}
        return cls(fd, int(info["key_size"]), int(info["value_size"]))

    def get(self, key: bytes) -> Optional[bytes]:
        """Return the value of `key` (for a per-CPU map the slots of all CPUs), or None."""
        try:
            self._call(_LOOKUP, key, ctypes.addressof(self._value))
        except OSError as error:
            if error.errno == errno.ENOENT:
                return None
            raise
        return self._value.raw

    def set(self, key: bytes, value: bytes) -> None:
        """Store `value` (not for per-CPU maps)."""
        buffer = ctypes.create_string_buffer(value, len(value))
        self._call(_UPDATE, key, ctypes.addressof(buffer))

    def delete(self, key: bytes) -> None:
        """Delete `key`; no error if it does not exist."""
        try:
            self._call(_DELETE, key, 0)
        except OSError as error:
            if error.errno != errno.ENOENT:
                raise

    def take(self, keys: Sequence[bytes]) -> Iterator[tuple[bytes, bytes]]:
        """Remove `keys`; yield the existing ones with their last values (since 5.14)."""
        return self._in_batches(self._take, keys)

    def keys(self) -> Iterator[bytes]:
        """Yield the keys; those added or deleted during the iteration may be missed."""
        following = ctypes.create_string_buffer(self.key_size)
        key: Optional[bytes] = None
        while True:
            try:
                self._call(_NEXT, key, ctypes.addressof(following))
            except OSError as error:
                if error.errno == errno.ENOENT:
                    return
                raise
            key = following.raw
            yield key

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """Yield (key, value) of the map's elements."""
        return self._in_batches(self.get, list(self.keys()))

    def _in_batches(
        self, call: Callable[[bytes], Optional[bytes]], keys: Sequence[bytes]
    ) -> Iterator[tuple[bytes, bytes]]:
        for start in range(0, len(keys), _BATCH):
            batch = keys[start : start + _BATCH]
            with realtime_priority():
                values = [call(key) for key in batch]
            for key, value in zip(batch, values):
                if value is not None:
                    yield key, value

    def _take(self, key: bytes) -> Optional[bytes]:
        try:
            self._call(_TAKE, key, ctypes.addressof(self._value))
        except OSError:
            return None
        return self._value.raw

    def _call(self, command: int, key: Optional[bytes], value: int) -> None:
        buffer = ctypes.create_string_buffer(key, self.key_size) if key is not None else None
        address = ctypes.addressof(buffer) if buffer is not None else 0
        bpf(command, struct.pack("=IIQQQ", self.fd, 0, address, value, 0))
