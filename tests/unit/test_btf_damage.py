"""A file of kernel types may hold anything: each damage is an error that names the file."""

from __future__ import annotations

import os
import struct
import time
from pathlib import Path

import pytest

from netbpf.errors import Unsupported, UsageError
from netbpf.kernel import btf, btf_file
from netbpf.kernel.btf import Btf
from tests.unit.fakes import ARRAY, FUNC, FUNC_PROTO, INT, PTR, STRUCT, TYPEDEF, BtfBlob
from tests.unit.test_btf import (
    libbpf,  # noqa: F401 - skips where there is none
    sample,
)

U32, LAST = 1, 0x7FFFFFFF
HEADER = "=HBBIIIII"


def types_of(path: Path, data: bytes) -> Btf:
    file = path / "types.btf"
    file.write_bytes(data)
    return Btf(str(file))


def blob() -> BtfBlob:
    """Types with one that the others may refer to: U32."""
    made = BtfBlob()
    made.integer("unsigned int", 4)
    return made


def with_member(type_id: int, offset: int = 0, *bits: int, size: int = 64) -> BtfBlob:
    made = blob()
    made.compound(STRUCT, "sock", size, [("x", type_id, offset, *bits)])
    return made


def refused(path: Path, made: BtfBlob, struct_name: str = "sock", field: str = "x") -> str:
    """Ask for a field, and for all members; return the error of the field."""
    types = types_of(path, made.bytes())
    with pytest.raises(UsageError) as caught:
        types.field(struct_name, field)
    try:
        types.members(struct_name)
    except UsageError as error:
        assert "is damaged: " in error.message
    assert caught.value.message.startswith(f"--btf: '{path}/types.btf' is damaged: ")
    assert "report" not in caught.value.hint
    return caught.value.message


# --- inconsistent types --------------------------------------------------------------------------


@pytest.mark.parametrize("type_id", [2000, LAST, 0xFFFFFFFF])
def test_missing_type(tmp_path, type_id):
    assert f"there is no type {type_id}" in refused(tmp_path, with_member(type_id))


def test_pointer_to_a_missing_type(tmp_path):
    made = with_member(3)
    made.pointer(LAST)
    assert "there is no type" in refused(tmp_path, made)


def test_name_outside_of_the_strings(tmp_path):
    made = with_member(U32)
    made.types[1] = made.types[1][:12] + struct.pack("=I", 5000) + made.types[1][16:]
    assert "there is no name 5000" in refused(tmp_path, made)


def test_typedef_of_itself(tmp_path):
    made = with_member(3)
    made.add("loop", TYPEDEF, 4)
    made.add("pool", TYPEDEF, 3)
    assert "part of itself" in refused(tmp_path, made)


def test_array_of_itself(tmp_path):
    made = with_member(3)
    made.array(3, 1, U32)
    assert "part of itself" in refused(tmp_path, made)


def test_struct_within_itself(tmp_path):
    made = blob()
    made.compound(STRUCT, "sock", 64, [("", 3, 0)])
    made.compound(STRUCT, "", 64, [("", 2, 0)])
    types = types_of(tmp_path, made.bytes())
    assert types.field("sock", "x") is None  # each struct is searched once
    with pytest.raises(UsageError, match="part of itself"):
        types.members("sock")


def test_anonymous_structs_that_contain_each_other_twice(tmp_path):
    made = blob()
    made.compound(STRUCT, "sock", 64, [("", 3, 0), ("", 3, 0)])
    for number in range(4, 60):
        made.compound(STRUCT, "", 64, [("", number, 0), ("", number, 0)])
    made.compound(STRUCT, "", 64, [("y", U32, 0)])
    types, began = types_of(tmp_path, made.bytes()), time.process_time()
    assert types.field("sock", "x") is None
    assert types.field("sock", "y") == btf.Field(0, "u32 %s")
    with pytest.raises(UsageError, match="too many members"):
        types.members("sock")
    assert time.process_time() - began < 2


def test_structs_nested_without_end(tmp_path):
    made = blob()
    made.compound(STRUCT, "sock", 64, [("", 3, 0)])
    for number in range(4, 5000):
        made.compound(STRUCT, "", 64, [("", number, 0)])
    made.compound(STRUCT, "", 64, [("x", U32, 0)])
    assert "part of itself" in refused(tmp_path, made)


@pytest.mark.parametrize("length", [1 << 27, 0xFFFFFFFF])
def test_array_without_end(tmp_path, length):
    made = with_member(3)
    made.array(U32, length, U32)
    assert "bytes" in refused(tmp_path, made)


def test_arrays_of_arrays_without_end(tmp_path):
    made = with_member(3)
    for number in range(4, 12):
        made.array(number, 60000, U32)
    made.array(U32, 60000, U32)
    assert "bytes" in refused(tmp_path, made)


@pytest.mark.parametrize(
    ("offset", "bits"),
    [(512, ()), (504, ()), (3, ()), (0xFFFFFFF8, ()), (510, (3,)), (0, (65,)), (4, (61,))],
)
def test_member_outside_of_the_struct_or_misaligned(tmp_path, offset, bits):
    assert "outside" in refused(tmp_path, with_member(U32, offset, *bits))


def test_member_outside_of_an_inner_struct(tmp_path):
    made = blob()
    made.compound(STRUCT, "sock", 64, [("a", 3, 0)])
    made.compound(STRUCT, "", 4, [("x", U32, 32)])
    assert "outside" in refused(tmp_path, made, field="a.x")


def test_struct_of_absurd_size(tmp_path):
    made = with_member(U32, size=0xFFFFFFFF)
    assert "4294967295 bytes" in refused(tmp_path, made)
    with pytest.raises(UsageError):
        types_of(tmp_path, made.bytes()).size("sock")


@pytest.mark.parametrize("kind", [FUNC, FUNC_PROTO, 7])
def test_member_of_a_kind_without_size(tmp_path, kind):
    made = with_member(3)
    made.add("other", kind, U32 if kind != 7 else 0)
    assert "no size" in refused(tmp_path, made)


@pytest.mark.parametrize("target", [U32, LAST])
def test_function_without_prototype(tmp_path, target):
    made = blob()
    made.add("tcp_close", FUNC, target, count=1)
    types = types_of(tmp_path, made.bytes())
    for ask in (types.parameters, types.typed):
        with pytest.raises(UsageError, match="prototype|no type"):
            ask("tcp_close")


# --- names ----------------------------------------------------------------------------------------

EVIL = ["sk; }; int evil(void) { return 1; }", "a b", "1st", "a\n#define u8", "x[9]", "\xff", "a'"]


@pytest.mark.parametrize("name", EVIL)
def test_name_that_is_not_a_c_identifier(tmp_path, name):
    made = blob()
    u32 = U32
    target = made.compound(STRUCT, name, 4, [("x", u32, 0)])
    made.compound(STRUCT, "sock", 64, [("x", made.pointer(target), 0)])
    made.compound(STRUCT, "other", 64, [(name, u32, 0), ("x", u32, 32)])
    made.function("tcp_close", 0, {name: u32})
    made.enum("mode", {name: 1})
    types = types_of(tmp_path, made.bytes())
    for ask in (
        lambda: types.field("sock", "x"),
        lambda: types.field("other", "x"),
        lambda: types.members("other"),
        lambda: types.parameters("tcp_close"),
        lambda: types.enumerators("mode"),
    ):
        with pytest.raises(UsageError, match="not a C identifier"):
            ask()


# --- the whole file -------------------------------------------------------------------------------


def changed_header(**new: int) -> bytes:
    data = sample().bytes()
    names = ("magic", "version", "flags", "header", "types", "types_size", "names", "names_size")
    values = dict(zip(names, struct.unpack_from(HEADER, data)))
    return struct.pack(HEADER, *{**values, **new}.values()) + data[24:]


@pytest.mark.parametrize("field", ["header", "types", "types_size", "names", "names_size"])
@pytest.mark.parametrize("value", [0, 1, 23, 25, 1 << 31, 0xFFFFFFFF])
def test_wrong_header(tmp_path, field, value):
    data = changed_header(**{field: value})
    if data != sample().bytes() and (field, value) != ("types_size", 0):  # which is valid
        with pytest.raises(UsageError):
            types_of(tmp_path, data)


def test_another_byte_order(tmp_path):
    data = sample().bytes()
    with pytest.raises(UsageError, match="another byte order"):
        types_of(tmp_path, data[1::-1] + data[2:])


def test_pointers_of_32_bits(tmp_path):
    made = BtfBlob()
    made.integer("long unsigned int", 4)
    with pytest.raises(UsageError, match="4-byte pointers"):
        types_of(tmp_path, made.bytes())
    made.types[0] = made.types[0][:8] + struct.pack("=I", 200) + made.types[0][12:]
    with pytest.raises(UsageError, match="long has 200 bytes|rejects"):
        types_of(tmp_path, made.bytes())


@pytest.mark.parametrize("kind", [0, 20, 31])
def test_unknown_kind(tmp_path, kind):
    made = blob()
    made.add("new", kind, 4)
    with pytest.raises(UsageError, match="type 2 has an unknown kind"):
        types_of(tmp_path, made.bytes())


@pytest.mark.parametrize("kind", [STRUCT, 6, FUNC_PROTO, 15, 19])
def test_count_beyond_the_end_of_the_file(tmp_path, kind):
    made = blob()
    made.add("much", kind, 4, count=0xFFFF)
    with pytest.raises(UsageError, match="type 2 ends outside"):
        types_of(tmp_path, made.bytes())


def test_btf_that_libbpf_rejects_is_damaged(tmp_path, monkeypatch):
    class Refusing:
        def btf__new(self, data: bytes, length: int) -> int:
            return 2**64 - 22  # as libbpf 0.x does

    monkeypatch.setattr(btf, "_libbpf", Refusing)
    with pytest.raises(UsageError, match="is damaged: libbpf rejects it"):
        types_of(tmp_path, sample().bytes())


def test_error_of_the_kernels_own_types_names_no_file():
    types = Btf.__new__(Btf)
    types._path, types._btf = "/sys/kernel/btf/vmlinux", 0
    error = types.damaged("there is no type 1")
    assert isinstance(error, Unsupported) and "--btf" not in error.message


@pytest.mark.parametrize("kind", ["fifo", "directory", "device", "absent", "link to nowhere"])
def test_other_file_types_do_not_block(tmp_path, kind):
    path = tmp_path / "types"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    elif kind == "link to nowhere":
        path.symlink_to("nowhere")
    with pytest.raises(UsageError) as caught:
        Btf("/dev/zero" if kind == "device" else str(path))
    assert caught.value.message.startswith("cannot read kernel types from '")


@pytest.mark.parametrize("begin", [b"", b"\x9f\xeb\1\0", b"\x7fELF\2\1\1"])
def test_huge_file_is_not_read(tmp_path, begin):
    path = tmp_path / "huge"
    path.write_bytes(begin)
    os.truncate(path, 3 << 30)
    with pytest.raises(UsageError, match="too large|not a readable ELF|no .BTF section"):
        Btf(str(path))


def elf(section: bytes, size: int = -1, name: bytes = b".BTF") -> bytes:
    """Return an ELF file of x86-64 with one section and the section names."""
    names = b"\0" + name + b"\0.shstrtab\0"
    at = 64 + len(section)
    table = at + len(names)
    ident = b"\x7fELF\2\1\1".ljust(16, b"\0")
    head = struct.pack("=HHIQQQIHHHHHH", 1, 62, 1, 0, 0, table, 0, 64, 0, 0, 64, 3, 2)
    size = len(section) if size < 0 else size
    form = "=IIQQQQIIQQ"
    sections = bytes(64) + struct.pack(form, 1, 1, 0, 0, 64, size, 0, 0, 1, 0)
    sections += struct.pack(form, 2 + len(name), 3, 0, 0, at, len(names), 0, 0, 1, 0)
    return ident + head + section + names + sections


def test_section_of_an_elf_file(tmp_path):
    types = types_of(tmp_path, elf(sample().bytes()))
    assert types.size("holder") == 256
    for data, word in (
        (elf(b"", name=b".BTX"), "no .BTF section"),
        (elf(b""), "cannot read kernel types"),
        (elf(sample().bytes(), size=99), "damaged"),
        (elf(sample().bytes(), size=1 << 40), "too large"),
        (elf(sample().bytes(), size=1 << 20), "truncated"),
        (elf(sample().bytes())[:80], "ELF|truncated"),
    ):
        with pytest.raises(UsageError, match=word):
            types_of(tmp_path, data)


def test_every_known_kind_has_the_right_size(tmp_path):
    made = blob()
    made.add("var", 14, U32, bytes(4))
    made.add("section", 15, 4, struct.pack("=III", 2, 0, 4), count=1)
    made.add("float", 16, 4)
    made.add("tag", 17, U32, struct.pack("=i", -1))
    made.add("type_tag", 18, U32)
    assert not list(btf_file._problems("", made.bytes()))
    assert {ARRAY, INT, PTR} < set(btf_file._TRAILING)
