"""BTF: fields, parameters and enumerators are the same as for a C compiler."""

from __future__ import annotations

from pathlib import Path

import pytest

from netbpf.errors import Unsupported, UsageError
from netbpf.kernel import btf
from netbpf.kernel.btf import FUNC, Btf, Field
from tests.unit.fakes import CONST, FWD, STRUCT, TYPEDEF, UNION, VOLATILE, BtfBlob


@pytest.fixture(autouse=True)
def libbpf() -> None:
    try:
        btf._libbpf()
    except Unsupported:
        pytest.skip("needs libbpf: apt install libbpf1, or dnf install libbpf")


def sample() -> BtfBlob:
    blob = BtfBlob()
    u8 = blob.integer("unsigned char", 1)
    u16 = blob.integer("unsigned short", 2)
    u32 = blob.integer("unsigned int", 4)
    s32 = blob.integer("int", 4, signed=True)
    u64 = blob.integer("unsigned long", 8)
    big = blob.integer("__int128", 16, signed=True)
    be16 = blob.add("__be16", TYPEDEF, blob.add("__u16", TYPEDEF, blob.add("", CONST, u16)))
    sock = blob.compound(STRUCT, "sock", 8, [("x", u64, 0)])
    chain = blob.add("", VOLATILE, blob.add("sock_t", TYPEDEF, blob.add("", CONST, sock)))
    unknown = blob.add("elsewhere", FWD, 0)
    mode = blob.enum("mode", {"MODE_OFF": 0, "MODE_ON": 1, "MODE_LAST": 0x7FFFFFFF})
    error = blob.enum("error", {"ERR_LOW": -5, "ERR_NONE": 0}, signed=True)
    wide = blob.enum64("wide", {"WIDE_LOW": 1, "WIDE_HIGH": 1 << 40})
    negative = blob.enum64("negative", {"NEGATIVE": -(1 << 40)}, signed=True)
    ports = blob.compound(STRUCT, "", 4, [("dport", be16, 0), ("num", u16, 16)])
    pair = blob.compound(UNION, "", 4, [("portpair", u32, 0), ("", ports, 0)])
    common = blob.compound(STRUCT, "common", 16, [("hash", u64, 0), ("", pair, 64)])
    blob.compound(STRUCT, "holder", 256, [
        ("common", common, 64),
        ("state", u8, 192),
        ("sk", blob.pointer(chain), 256),
        ("anything", blob.pointer(0), 320),
        ("opaque", blob.pointer(unknown), 384),
        ("number", blob.pointer(u32), 448),
        ("addr", blob.array(u8, 16, u32), 512),
        ("grid", blob.array(blob.array(u16, 3, u32), 2, u32), 640),
        ("socks", blob.array(blob.pointer(sock), 4, u32), 768),
        ("commons", blob.array(common, 2, u32), 1024),
        ("mode", mode, 1280),
        ("error", error, 1312),
        ("wide", wide, 1344),
        ("negative", negative, 1408),
        ("signed", s32, 1472),
        ("big", big, 1536),
        ("whole", common, 1664),
    ])  # fmt: skip
    inner = blob.compound(STRUCT, "", 4, [("nodelay", u32, 0, 1), ("nonagle", u32, 1, 4)])
    blob.compound(STRUCT, "bits", 16, [
        ("plain", u32, 0, 0), ("first", u32, 32, 3), ("second", u32, 35, 7), ("", inner, 64, 0),
    ])  # fmt: skip
    blob.compound(UNION, "either", 8, [("a", u32, 0), ("b", u64, 0)])
    blob.function("tcp_set_state", 0, {"sk": blob.pointer(sock), "state": s32})
    blob.function("nothing", 0, {})
    return blob


@pytest.fixture
def types(tmp_path: Path) -> Btf:
    path = tmp_path / "vmlinux"
    path.write_bytes(sample().bytes())
    return Btf(str(path))


FIELDS = [
    ("holder", "state", Field(192, "u8 %s")),
    ("holder", "common.hash", Field(64, "u64 %s")),
    ("holder", "common.dport", Field(128, "u16 %s")),  # typedef chain in anonymous members
    ("holder", "common.num", Field(144, "u16 %s")),
    ("holder", "common.portpair", Field(128, "u32 %s")),
    ("holder", "sk", Field(256, "struct sock *%s")),
    ("holder", "anything", Field(320, "void *%s")),
    ("holder", "opaque", Field(384, "void *%s")),
    ("holder", "number", Field(448, "void *%s")),
    ("holder", "addr", Field(512, "u8 %s[16]")),
    ("holder", "grid", Field(640, "u16 %s[2][3]")),
    ("holder", "socks", Field(768, "struct sock *%s[4]")),
    ("holder", "commons", Field(1024, "u8 %s[2][16]")),
    ("holder", "mode", Field(1280, "u32 %s")),
    ("holder", "error", Field(1312, "s32 %s")),
    ("holder", "wide", Field(1344, "u64 %s")),
    ("holder", "negative", Field(1408, "s64 %s")),
    ("holder", "signed", Field(1472, "s32 %s")),
    ("holder", "big", Field(1536, "u8 %s[16]")),
    ("holder", "whole", Field(1664, "u8 %s[16]")),
    ("bits", "plain", Field(0, "u32 %s")),
    ("bits", "first", Field(32, "u32 %s", 3)),
    ("bits", "second", Field(35, "u32 %s", 7)),
    ("bits", "nonagle", Field(65, "u32 %s", 4)),
    ("either", "b", Field(0, "u64 %s")),
]  # fmt: skip


@pytest.mark.parametrize(("struct", "path", "field"), FIELDS, ids=lambda part: str(part))
def test_field_has_the_compilers_offset(types, struct, path, field):
    assert types.field(struct, path) == field


@pytest.mark.parametrize(
    ("struct", "path"),
    [
        ("absent", "x"),
        ("holder", "absent"),
        ("holder", "common.absent"),
        ("holder", "state.below_a_number"),
        ("holder", "sk.x"),  # a pointer is not followed
        ("mode", "MODE_ON"),
        ("holder", ""),
    ],
)
def test_missing_field_is_none(types, struct, path):
    assert types.field(struct, path) is None


def test_size_of_structs_and_unions(types):
    assert types.size("holder") == 256
    assert types.size("either") == 8
    assert types.size("mode") is None
    assert types.size("absent") is None


def test_parameters_are_names_in_order(types):
    assert types.parameters("tcp_set_state") == ("sk", "state")
    assert types.parameters("nothing") == ()
    assert types.parameters("absent") is None


def test_find_distinguishes_kinds(types):
    assert types.find("tcp_set_state", FUNC) > 0
    assert types.find("tcp_set_state", STRUCT) == 0


def test_enumerators_have_their_values(types):
    assert types.enumerators("mode") == {"MODE_OFF": 0, "MODE_ON": 1, "MODE_LAST": 0x7FFFFFFF}
    assert types.enumerators("wide") == {"WIDE_LOW": 1, "WIDE_HIGH": 1 << 40}
    assert types.enumerator("error", "ERR_LOW") == -5
    assert types.enumerator("negative", "NEGATIVE") == -(1 << 40)
    assert types.enumerator("mode", "ABSENT") is None
    assert types.enumerator("absent", "MODE_ON") is None


@pytest.mark.parametrize("data", [b"", b"no BTF at all", b"\x9f\xeb\1\0" + bytes(20)])
def test_file_without_btf_is_a_usage_error(tmp_path, data):
    path = tmp_path / "vmlinux"
    path.write_bytes(data)
    with pytest.raises(UsageError, match="cannot read kernel types"):
        Btf(str(path))


def test_truncated_btf_is_a_usage_error(tmp_path):
    blob = sample().bytes()
    for length in range(0, len(blob), 97):
        path = tmp_path / f"cut-{length}"
        path.write_bytes(blob[:length])
        with pytest.raises(UsageError):
            Btf(str(path))


def test_missing_file_is_a_usage_error_with_a_hint(tmp_path):
    with pytest.raises(UsageError) as caught:
        Btf(str(tmp_path / "absent"))
    assert "--btf" in caught.value.hint


def test_kernel_without_btf_is_unsupported(tmp_path, monkeypatch):
    monkeypatch.setattr(btf, "VMLINUX", str(tmp_path / "absent"))
    with pytest.raises(Unsupported) as caught:
        Btf(str(tmp_path / "absent"))
    assert "CONFIG_DEBUG_INFO_BTF" in caught.value.hint
