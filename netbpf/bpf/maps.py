"""Read and write BPF maps by their descriptors, as plain bytes."""

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

# How many entries are read before other tasks have their turn: some 0.3 ms.
_AT_ONCE = 64


@lru_cache(maxsize=1)
def possible_cpus() -> int:
    """Return how many CPUs may ever come up: the number of slots of a per-CPU value."""
    last = Path("/sys/devices/system/cpu/possible").read_text().strip().split(",")[-1]
    return int(last.split("-")[-1]) + 1


class Map:
    """One BPF map; `per_cpu` values come as one value per possible CPU, each padded to 8 bytes."""

    def __init__(self, fd: int, key_size: int, value_size: int, per_cpu: bool = False) -> None:
        """Take the map's descriptor and its sizes in bytes."""
        self.fd = fd
        self.key_size = key_size
        self.value_size = value_size
        self.stride = -(-value_size // 8) * 8 if per_cpu else value_size
        self.per_cpu = per_cpu
        self._value = ctypes.create_string_buffer(self.stride * (possible_cpus() if per_cpu else 1))

    @classmethod
    def opened(cls, fd: int) -> Map:
        """Return the map (not a per-CPU one) behind `fd` with the sizes that the kernel tells."""
        lines = Path(f"/proc/self/fdinfo/{fd}").read_text().splitlines()
        told = {name: value for name, _, value in (line.partition(":") for line in lines)}
        return cls(fd, int(told["key_size"]), int(told["value_size"]))

    def get(self, key: bytes) -> Optional[bytes]:
        """Return the value of `key` (of all CPUs, one after the other, if per CPU), or None."""
        try:
            self._call(_LOOKUP, key, ctypes.addressof(self._value))
        except OSError as error:
            if error.errno == errno.ENOENT:
                return None
            raise
        return self._value.raw

    def set(self, key: bytes, value: bytes) -> None:
        """Store `value` (of a map that is not per CPU)."""
        buffer = ctypes.create_string_buffer(value, len(value))
        self._call(_UPDATE, key, ctypes.addressof(buffer))

    def delete(self, key: bytes) -> None:
        """Forget `key`; no error if it is gone already."""
        try:
            self._call(_DELETE, key, 0)
        except OSError as error:
            if error.errno != errno.ENOENT:
                raise

    def take(self, keys: Sequence[bytes]) -> Iterator[tuple[bytes, bytes]]:
        """Remove `keys`, yield those that were there with their last values (since 5.14)."""
        return self._each(self._take, keys)

    def keys(self) -> Iterator[bytes]:
        """Yield the keys; keys that come and go meanwhile may be seen or not."""
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
        """Yield (key, value) of what is in the map."""
        return self._each(self.get, list(self.keys()))

    def _each(
        self, call: Callable[[bytes], Optional[bytes]], keys: Sequence[bytes]
    ) -> Iterator[tuple[bytes, bytes]]:
        for start in range(0, len(keys), _AT_ONCE):
            some = keys[start : start + _AT_ONCE]
            with realtime_priority():
                values = [call(key) for key in some]
            for key, value in zip(some, values):
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
