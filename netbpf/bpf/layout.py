"""Generate C declarations of kernel structs with only the fields in use, at this kernel's offsets.

A C program declares what it reads with KERNEL_FIELDS(struct, path, ...), KERNEL_OPTIONAL(...)
(HAVE_struct_path is defined if the field exists), KERNEL_ENUM(enum, name, ...) and
KERNEL_OPTIONAL_ENUM(enum, name, ...) (HAVE_name is the value if it exists), which expand to nothing
for the compiler. Each struct becomes a union of packed structs, one per field, padded to the offset
in BTF. So offsets do not depend on the compiler's handling of alignment, bit fields or anonymous
members (kernels from 6.19 on use -fms-extensions members, which older clang silently drops from
whole definitions).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from netbpf.declare.probes import Alternative, is_of_target
from netbpf.errors import Unsupported
from netbpf.kernel.btf import Field
from netbpf.kernel.inspect import Kernel, tracepoint_format
from netbpf.kernel.select import Selection

_MANIFEST = re.compile(r"^KERNEL_(FIELDS|OPTIONAL|ENUM|OPTIONAL_ENUM)\(([^)]*)\)", re.MULTILINE)
_INCLUDE = re.compile(r'#include "([^"]+)"')


class Manifest(NamedTuple):
    """Kernel fields or enumerators that a C program reads.

    `kind` is FIELDS, OPTIONAL, ENUM or OPTIONAL_ENUM.
    """

    kind: str
    struct: str
    names: tuple[str, ...]


def program_directory() -> Path:
    """Return the directory of the C programs, in the installed package or the source tree."""
    package = Path(__file__).resolve().parents[1]
    inside = package / "bpf_programs"
    return inside if inside.is_dir() else package.parent / "bpf_programs"


def program_text(source: Path) -> str:
    """Return the C program `source` with netbpf's own headers expanded in place, once each.

    bcc's rewriter, which makes maps usable, changes only the main file, not headers.
    """
    return _expanded(source, set())


def _expanded(path: Path, seen: set[Path]) -> str:
    if path in seen:
        return ""
    seen.add(path)
    lines = [f'#line 1 "{path.name}"']
    for number, line in enumerate(path.read_text().splitlines(), 1):
        included = _INCLUDE.match(line)
        if included:
            lines.append(_expanded(program_directory() / "include" / included[1], seen))
            lines.append(f'#line {number + 1} "{path.name}"')
        else:
            lines.append(line)
    return "\n".join([*lines, ""])


def manifests(text: str) -> list[Manifest]:
    """Return the manifests in a program's text."""
    found: list[Manifest] = []
    for kind, arguments in _MANIFEST.findall(text):
        words = tuple(word.strip() for word in arguments.split(",") if word.strip())
        found.append(Manifest(kind, words[0], words[1:]))
    return found


def header(kernel: Kernel, wanted: Sequence[Manifest], selections: Sequence[Selection]) -> str:
    """Return the C header for a program's manifests; raises Unsupported if a field is missing."""
    fields: dict[str, dict[str, Field]] = {}
    defines: list[str] = []
    for manifest in wanted:
        if manifest.kind.endswith("ENUM"):
            defines += _enumerators(kernel, manifest)
        else:
            defines += _collect(kernel, manifest, fields)
    structs = [_struct(name, kernel.size(name) or 0, found) for name, found in fields.items()]
    contexts = [line for selection in selections for line in _context(kernel, selection)]
    names = sorted({m[1] for m in re.finditer(r"struct (\w+) \*", "\n".join(structs))})
    forward = [f"struct {name};" for name in names]
    return "\n".join([*defines, *forward, *structs, *contexts, ""])


def _enumerators(kernel: Kernel, manifest: Manifest) -> Iterator[str]:
    for name in manifest.names:
        value = kernel.enumerator(manifest.struct, name)
        if value is not None:
            prefix = "HAVE_" if manifest.kind == "OPTIONAL_ENUM" else ""
            yield f"#define {prefix}{name} {value}"
        elif manifest.kind == "ENUM":
            raise _lacking(kernel, f"enum {manifest.struct}", name)


def _collect(kernel: Kernel, manifest: Manifest, fields: dict[str, dict[str, Field]]) -> list[str]:
    defines = []
    for path in manifest.names:
        found = kernel.field(manifest.struct, path)
        if found:
            fields.setdefault(manifest.struct, {})[path] = found
            if manifest.kind == "OPTIONAL":
                defines.append(f"#define HAVE_{manifest.struct}_{path.replace('.', '_')} 1")
        elif manifest.kind == "FIELDS":
            raise _lacking(kernel, f"struct {manifest.struct}", path)
    return defines


def _lacking(kernel: Kernel, where: str, what: str) -> Unsupported:
    return Unsupported(
        f"kernel {kernel.release} has no '{what}' in {where}",
        "please report this kernel: the field may have been renamed",
    )


def _struct(name: str, size: int, fields: dict[str, Field]) -> str:
    plain = {path: field for path, field in fields.items() if not field.bit_size}
    # Also of bytes: kernels make bit fields of them, and bytes of bit fields.
    small = {path: field for path, field in fields.items() if field.bit_size or _is_byte(field)}
    readers = [_bit_reader(name, path, field) for path, field in small.items()]
    body = "\n".join(_members(plain, 0, "\t\t"))
    union = f"struct {name} {{\n\tunion {{\n{body}\n\t\tu8 size_of_struct[{size}];\n\t}};\n}}"
    return "\n".join([f"{union} __attribute__((aligned(8)));", *readers])


def _members(fields: dict[str, Field], base: int, indent: str) -> Iterator[str]:
    # `base` is the bit offset of the enclosing struct; dotted paths become nested structs.
    groups: dict[str, dict[str, Field]] = {}
    for path, field in fields.items():
        first, _, rest = path.partition(".")
        groups.setdefault(first, {})[rest] = field
    for first, inner in groups.items():
        start = min(field.bit_offset for field in inner.values())
        skip = (start - base) // 8
        pad = f"u8 before_{first}[{skip}]; " if skip else ""
        if "" in inner:
            what = inner[""].ctype.replace("%s", first, 1)
        else:
            members = "\n".join(_members(inner, start, indent + "\t"))
            what = f"union {{\n{members}\n{indent}}} {first}"
        yield f"{indent}struct {{ {pad}{what}; }} __attribute__((packed));"


def _is_byte(field: Field) -> bool:
    return field.ctype == "u8 %s"


def _bit_reader(struct: str, path: str, field: Field) -> str:
    # A bit field has no address: read the bytes that contain it and shift.
    byte, shift = divmod(field.bit_offset, 8)
    bits = field.bit_size or 8
    length = (shift + bits + 7) // 8
    mask = (1 << bits) - 1
    name = path.replace(".", "_")
    return (
        f"static inline u64 read_{struct}_{name}(const void *from)\n{{\n\tu64 bytes = 0;\n\n"
        f"\tbpf_probe_read_kernel(&bytes, {length}, from + {byte});\n"
        f"\treturn bytes >> {shift} & {mask}ULL;\n}}"
    )


def arguments_of(kernel: Kernel, used: Alternative, target: str) -> Sequence[str]:
    """Return the names of the arguments of `target` on this kernel, in order."""
    return tuple(getattr(kernel, used.how.offers)(target) or ()) if used.how.offers else ()


def offered_name(arg: str, offered: Sequence[str]) -> str:
    """Return the first name in "a|b" that the target has."""
    return next(name for name in arg.split("|") if name in offered)


def _context(kernel: Kernel, selection: Selection) -> Iterator[str]:
    used = selection.alternative
    if not used:
        return
    yield f"#define USE_{selection.entry} 1"
    if selection.probe.complements:
        yield "#define COMPLEMENTED 1"  # the probe that it complements must mark what it reported
    if used.how.attach == "trace_event":  # the context is a struct with the event's fields
        fields = tracepoint_format(selection.targets[0]) or {}
        own = [offered_name(arg, list(fields)) for arg in filter(is_of_target, used.args)]
        size = max((f.bit_offset // 8 + 8 for f in fields.values()), default=8)
        yield _struct(f"{selection.probe.name}_args", size, {name: fields[name] for name in own})
