"""The generated header: every field has the kernel's offset for a C compiler."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from netbpf.bpf import layout
from netbpf.bpf.layout import Manifest, header, manifests, program_text
from netbpf.declare.probes import Fexit, Kprobe, Probe, RawTracepoint, Tracepoint
from netbpf.errors import Unsupported
from netbpf.kernel.btf import Field
from netbpf.kernel.select import select
from tests.unit.fakes import FakeKernel

# A struct as in a kernel for a 64-bit machine.
ORIGINAL = """
struct original {
	u8 first;
	struct {
		u64 hash;
		union {
			u32 portpair;
			struct { u16 dport; u16 num; };
		};
		struct { u32 inum; } deep[1];
		void *net;
	} common;
	u8 state;
	u16 odd;
	u8 addr[16];
	u16 grid[2][3];
	struct original *next;
	s32 err;
	u32 before : 5, nodelay : 1, nonagle : 4, across : 9, wide : 13;
	u64 last;
	u8 tail[3];
};
"""
FIELDS = {
    "first": Field(0, "u8 %s"),
    "common.hash": Field(8 * 8, "u64 %s"),
    "common.portpair": Field(16 * 8, "u32 %s"),
    "common.dport": Field(16 * 8, "u16 %s"),
    "common.num": Field(18 * 8, "u16 %s"),
    "common.net": Field(24 * 8, "void *%s"),
    "state": Field(32 * 8, "u8 %s"),
    "odd": Field(34 * 8, "u16 %s"),
    "addr": Field(36 * 8, "u8 %s[16]"),
    "grid": Field(52 * 8, "u16 %s[2][3]"),
    "next": Field(64 * 8, "struct original *%s"),
    "err": Field(72 * 8, "s32 %s"),
    "last": Field(80 * 8, "u64 %s"),
}
BITS = {
    "nodelay": Field(76 * 8 + 5, "u32 %s", 1),
    "nonagle": Field(76 * 8 + 6, "u32 %s", 4),
    "across": Field(76 * 8 + 10, "u32 %s", 9),
    "wide": Field(76 * 8 + 19, "u32 %s", 13),
}
SIZE = 96
TYPES = """
#include <stddef.h>
#include <stdio.h>
#include <string.h>
typedef unsigned char u8; typedef unsigned short u16; typedef unsigned int u32;
typedef unsigned long long u64; typedef int s32;
#define bpf_probe_read_kernel(to, size, from) memcpy(to, from, size)
"""


def kernel(**more) -> FakeKernel:
    fields = {("generated", path): field for path, field in {**FIELDS, **BITS}.items()}
    return FakeKernel(fields=fields, sizes={"generated": SIZE}, **more)


def compile_and_run(tmp_path: Path, source: str) -> str:
    compiler = shutil.which("gcc") or shutil.which("clang")
    if not compiler:
        pytest.skip("needs a C compiler: apt install gcc")
    program = tmp_path / "check"
    (tmp_path / "check.c").write_text(source)
    command = [compiler, "-std=gnu11", "-Werror", "-Wall", "-Wno-unused-function"]
    subprocess.run([*command, "-o", str(program), "check.c"], cwd=tmp_path, check=True, timeout=60)
    return subprocess.run([program], capture_output=True, text=True, check=True, timeout=10).stdout


def test_compiler_finds_every_field_and_reads_bit_fields(tmp_path):
    # GIVEN a header for a struct that the compiler also has
    wanted = Manifest("FIELDS", "generated", (*FIELDS, *BITS))
    text = header(kernel(), [wanted], [])
    # WHEN both are compiled together
    same = "\n".join(
        f"_Static_assert(offsetof(struct generated, {path}) == offsetof(struct original, {path}) &&"
        f" sizeof(((struct generated *)0)->{path}) == sizeof(((struct original *)0)->{path}),"
        f' "{path}");'
        for path in FIELDS
    )
    reads = "\n".join(
        f'if (read_generated_{name}(&o) != o.{name}) printf("{name} %u %u\\n", '
        f"(unsigned)read_generated_{name}(&o), o.{name});"
        for name in BITS
    )
    body = f"""
int main(void)
{{
	struct original o;
	for (int pattern = 0; pattern < 256; pattern++) {{
		for (unsigned i = 0; i < sizeof(o); i++)
			((u8 *)&o)[i] = pattern * 31 + i * 59;
		{reads}
	}}
	return 0;
}}"""
    size = '_Static_assert(sizeof(struct generated) == sizeof(struct original), "size");'
    source = "\n".join([TYPES, ORIGINAL, text, same, size, body])
    # THEN every offset, size and value is the same
    assert compile_and_run(tmp_path, source) == ""


def test_optional_field_is_defined_only_if_it_exists():
    wanted = [Manifest("OPTIONAL", "generated", ("common.num", "absent", "common.gone"))]
    text = header(kernel(), wanted, [])
    assert "#define HAVE_generated_common_num 1" in text
    assert "absent" not in text
    assert "gone" not in text


def test_struct_without_fields_is_not_generated():
    assert "struct gone" not in header(kernel(), [Manifest("OPTIONAL", "gone", ("x",))], [])


def test_missing_required_field_is_named_in_the_error():
    with pytest.raises(Unsupported, match=r"kernel 1\.2\.3-fake has no 'absent' in struct generat"):
        header(kernel(), [Manifest("FIELDS", "generated", ("first", "absent"))], [])


def test_pointers_to_structs_are_declared_first():
    text = header(kernel(), [Manifest("FIELDS", "generated", ("next",))], [])
    assert text.index("struct original;") < text.index("struct original *next")


def test_several_manifests_of_one_struct_are_one_struct():
    wanted = [
        Manifest("FIELDS", "generated", ("first",)),
        Manifest("FIELDS", "generated", ("err",)),
    ]
    assert header(kernel(), wanted, []).count("struct generated {") == 1


def test_enumerators_become_constants():
    found = kernel(enums={("flags", "SOCK_DONE"): 1, ("flags", "SOCK_DEAD"): 0})
    text = header(found, [Manifest("ENUM", "flags", ("SOCK_DONE", "SOCK_DEAD"))], [])
    assert "#define SOCK_DONE 1\n#define SOCK_DEAD 0\n" in text
    with pytest.raises(Unsupported, match="no 'ABSENT' in enum flags"):
        header(found, [Manifest("ENUM", "flags", ("ABSENT",))], [])


def chosen(found: FakeKernel, *alternatives) -> str:
    return header(found, [], select([Probe("state", *alternatives)], found))


@pytest.mark.parametrize(
    "alternative",
    [RawTracepoint("f", args=("err",)), Fexit("f", args=("err",)), Kprobe("f", args=("err",))],
)
def test_selected_kinds_are_defined(alternative):
    names = {"f": ("sk", "flags", "err")}
    text = chosen(FakeKernel(raw=names, functions=names, takes=("fentry", "kprobe")), alternative)
    assert text.splitlines() == [f"#define USE_state_{alternative.kind} 1"]


def test_trace_event_fields_are_a_struct_at_the_offsets_of_the_format(monkeypatch, tmp_path):
    fields = {"skaddr": Field(64, "u64 %s"), "ret": Field(128, "s32 %s"), "x": Field(192, "u8 %s")}
    monkeypatch.setattr(layout, "tracepoint_format", lambda name: fields)
    found = FakeKernel({"s:t": tuple(fields)})
    text = chosen(found, Tracepoint("s:t", args=("ret", "skaddr")))
    checks = """
_Static_assert(offsetof(struct state_args, ret) == 16, "ret");
_Static_assert(offsetof(struct state_args, skaddr) == 8, "skaddr");
int main(void) { return 0; }"""
    assert "#define USE_state_tp 1" in text
    compile_and_run(tmp_path, TYPES + text + checks)


def test_nothing_is_generated_for_a_probe_without_alternative():
    found = FakeKernel()
    selections = select([Probe("state", Kprobe("f"), optional=True)], found)
    assert header(found, [], selections).strip() == ""


def test_manifests_are_read_from_the_text():
    text = """
KERNEL_FIELDS(sock, sk_err, __sk_common.skc_flags)
KERNEL_OPTIONAL(sock,
                x)
KERNEL_ENUM(sock_flags, SOCK_DONE)
#define KERNEL_FIELDS(...)
	KERNEL_FIELDS(indented, no)
"""
    assert manifests(text) == [
        Manifest("FIELDS", "sock", ("sk_err", "__sk_common.skc_flags")),
        Manifest("OPTIONAL", "sock", ("x",)),
        Manifest("ENUM", "sock_flags", ("SOCK_DONE",)),
    ]


def test_own_headers_are_expanded_once_and_others_stay(monkeypatch, tmp_path):
    include = tmp_path / "include"
    include.mkdir()
    (tmp_path / "x.bpf.c").write_text('#include "a.h"\n#include "b.h"\n#include <c.h>\nint x;\n')
    (include / "a.h").write_text('#include "b.h"\nint a;\n')
    (include / "b.h").write_text("int b;\n")
    monkeypatch.setattr(layout, "program_directory", lambda: tmp_path)
    text = program_text(tmp_path / "x.bpf.c")
    assert [line for line in text.splitlines() if line and "#line" not in line] == [
        "int b;", "int a;", "#include <c.h>", "int x;",
    ]  # fmt: skip


def test_line_directives_match_the_files(monkeypatch, tmp_path):
    # GIVEN a program with an error on a known line
    (tmp_path / "include").mkdir()
    (tmp_path / "x.bpf.c").write_text('#include "a.h"\n\nwrong here;\n')
    (tmp_path / "include" / "a.h").write_text("int a;\n")
    monkeypatch.setattr(layout, "program_directory", lambda: tmp_path)
    lines = program_text(tmp_path / "x.bpf.c").splitlines()
    # THEN the last #line before it leads to it
    at = lines.index("wrong here;")
    mark = max(i for i in range(at) if lines[i].startswith("#line"))
    number, name = int(lines[mark].split()[1]), lines[mark].split()[2]
    assert (name, number + at - mark - 1) == ('"x.bpf.c"', 3)


def test_programs_are_found():
    assert (layout.program_directory() / "include" / "netbpf.bpf.h").is_file()
