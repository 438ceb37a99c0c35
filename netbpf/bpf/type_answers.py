"""Keep answers about the running kernel's types beside the compiled programs, for the next start.

They are valid until the next boot: the types of vmlinux do not change while a kernel runs, and the
boot id in the file's name is another one afterwards.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Callable, Optional

from netbpf.bpf import cache
from netbpf.kernel import btf, btf_types, known_types
from netbpf.kernel.inspect import LiveKernel
from netbpf.kernel.known_types import Answer, KnownTypes

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_MAX_BYTES = 1 << 18  # ten times what all tools ask for
_DIGEST = 32  # bytes of SHA-256
_INTEGERS = range(-(1 << 63), 1 << 64)

Log = Callable[[str], None]


def open_kernel(btf: str, log: Log) -> LiveKernel:
    """Return the running kernel, with types from the file `btf` if it is given.

    Raises Unsupported if it has no BTF, and UsageError for an invalid file.
    """
    return LiveKernel(btf) if btf else LiveKernel(known=KnownTypes(load(log)))


def keep_answers(kernel: LiveKernel, log: Log) -> None:
    """Store what was asked of `kernel`, unless all of it was known."""
    types = kernel.btf
    if isinstance(types, KnownTypes) and len(types.answers) != types.known:
        save(types.answers, log)


def load(log: Log) -> dict[str, Answer]:
    """Return the answers of earlier starts; empty if there are none or the cache is off."""
    with cache.attempt("no cache of the kernel's types", log):
        key = file_name()
        data = cache.get(key, log)
        if data is not None:
            answers = unpack(data, key)
            if answers is None:
                log(f"{cache.location()}/{key[:12]}... is ignored: its content is invalid")
            return answers or {}
    return {}


def save(answers: Mapping[str, Answer], log: Log) -> None:
    """Store all answers for the next start."""
    with cache.attempt("the kernel's types are not cached for the next start", log):
        key = file_name()
        data = pack(answers, key)
        if len(data) <= _MAX_BYTES:
            cache.put(key, data)


def file_name() -> str:
    """Return the name of the file: a hash of this boot of the kernel and of the code that asks."""
    code = [os.stat(str(module.__file__)) for module in (btf, btf_types, known_types)]
    states = [(state.st_size, state.st_mtime_ns) for state in code]
    parts = ["types", _BOOT_ID.read_text(), os.uname().version, states]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def pack(answers: Mapping[str, Answer], key: str) -> bytes:
    """Return the answers as bytes for `unpack` with the same key."""
    text = json.dumps(answers).encode()
    return hashlib.sha256(key.encode() + text).digest() + text


def unpack(data: bytes, key: str) -> Optional[dict[str, Answer]]:
    """Return the packed answers, or None if `data` is not exactly what `pack` returned."""
    text = data[_DIGEST:]
    if len(data) > _MAX_BYTES or data[:_DIGEST] != hashlib.sha256(key.encode() + text).digest():
        return None
    try:
        answers = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(answers, dict) or not all(map(_is_answer, answers.values())):
        return None
    return answers


def _is_answer(value: Any) -> bool:
    if isinstance(value, dict):
        return all(map(_is_integer, value.values()))
    if isinstance(value, list):
        return all(isinstance(one, str) or _is_integer(one) for one in value)
    return value is None or isinstance(value, bool) or _is_integer(value)


def _is_integer(value: Any) -> bool:
    return type(value) is int and value in _INTEGERS
