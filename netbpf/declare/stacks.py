"""Columns of user stacks: the functions that led to a system call, and how far they are known."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Callable, Optional

from netbpf.declare.batch import Columns
from netbpf.declare.column import Column, Converter
from netbpf.declare.options import Option
from netbpf.declare.record import Event, Record, named
from netbpf.declare.values import escape

# BPF maps that the reader needs: include/user_stacks.bpf.h.
RECORDS_OF_STACKS = ("stack_records", "unwind_rules", "stacks_limited")
COMPLETE, CUT, NO_UNWIND = "complete", "cut", "no-unwind"
_ENDS = {
    CUT: "(cut: the stack goes on)",
    NO_UNWIND: "(no unwind information: functions may be missing)",
}


class Frame(dict[str, Any]):
    """A function of a stack: `function`, `offset`, `file` and `build_id`, each may be None.

    `offset` is the offset of the return address in the function, in the file if there is no
    function, or the address itself if there is no file.
    """

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(tuple(self.values()))

    def __str__(self) -> str:
        """Return "connect+0xb (/lib/libc.so.6)"."""
        file = self["file"] or (f"[{self['build_id'][:16]}]" if self["build_id"] else "")
        offset = "" if self["offset"] is None else f"0x{self['offset']:x}"
        if self["function"]:
            text = f"{self['function']}+{offset}" + (f" ({file})" if file else "")
        else:
            text = f"{file}+{offset}" if file else offset or "?"
        return escape(text)


class Stack(tuple[Frame, ...]):
    """The functions of a user stack, innermost first, and how it ends.

    `end` is "complete", "cut" (the stack is deeper than what was copied) or "no-unwind" (followed
    by frame pointers, so that functions of programs without them are missing).
    """

    end: str

    def __new__(cls, frames: Iterable[Frame] = (), end: str = NO_UNWIND) -> Stack:
        """Make a stack of `frames`."""
        stack = super().__new__(cls, frames)
        stack.end = end
        return stack

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Stack) and self.end == other.end and super().__eq__(other)

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return hash((self.end, tuple(self)))

    def __str__(self) -> str:
        """Return the functions in one line, for CSV and headings."""
        return ";".join(str(frame) for frame in self)


class Functions(list[str]):
    """The functions of a kernel stack, innermost first, that can be a key."""

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(tuple(self))

    def __str__(self) -> str:
        """Return the functions in one line, for headings."""
        return ";".join(self)


class UserStack(Column):
    """The user stack of the current system call: what user_stack() of user_stacks.bpf.h returns.

    The column is in the output only if stacks are captured, see `captures`.
    """

    ctype = "u64"
    width = 1
    below = True
    json_type = "array"

    def __init__(self) -> None:
        help = "functions that led to the call, innermost first"
        super().__init__(help, header=" ", option="stack")
        self._resolver: Optional[Callable[[int], Optional[Stack]]] = None

    def bind(self, resolve: Callable[[int], Optional[Stack]]) -> None:
        """Set the function from the number to the stack."""
        self._resolver = resolve

    def converter(self) -> Optional[Converter]:
        """Return the conversion."""
        return self._stack

    def _stack(self, raw: int) -> Optional[Stack]:
        return self._resolver(raw) if raw and self._resolver else None

    def text(self, value: Any) -> str:
        """Format as one indented line per function."""
        lines = (
            [*map(str, value), *([_ENDS[value.end]] if value.end in _ENDS else [])] if value else []
        )
        return "".join(f"\n    {line}" for line in lines)

    def schema(self) -> dict[str, Any]:
        """Return the JSON Schema of the list."""
        text, number = {"type": ["string", "null"]}, {"type": ["integer", "null"]}
        frame = {"function": text, "offset": number, "file": text, "build_id": text}
        items = {
            "type": "object",
            "properties": frame,
            "required": list(frame),
            "additionalProperties": False,
        }
        return {**super().schema(), "items": items}


class StackEnd(Column):
    """How far the user stack in the column `stack` is known."""

    ctype = ""
    json_type = "string"

    def __init__(self) -> None:
        super().__init__(
            "how the stack ends: complete, cut (deeper than what was copied), or no-unwind "
            "(followed by frame pointers: functions may be missing)",
            text=False,
        )
        self.name = "stack_end"

    def schema(self) -> dict[str, Any]:
        """Return the JSON Schema, with the words."""
        return {**super().schema(), "enum": [COMPLETE, CUT, NO_UNWIND, None]}


class StackEvent(Event):
    """An event with the user stack of the call that it is about, if STACK is given."""

    shared = ((), named(stack=UserStack(), stack_end=StackEnd()))


STACK = Option("--stack", help="show the functions that led to each call")


def wants_stacks(settings: Mapping[str, Any]) -> bool:
    """Return whether the options ask for stacks, as a column or as a key."""
    return bool(settings.get("stack")) or any(
        key.name == "stack" for key in settings.get("by") or ()
    )


def user_stacks(records: Iterable[type[Record]], settings: Mapping[str, Any]) -> list[UserStack]:
    """Return the columns of user stacks that these settings fill."""
    columns = [column for record in records for column in record.members]
    wanted = wants_stacks(settings)
    return [column for column in columns if isinstance(column, UserStack) and wanted]


def end_of(stack: Any) -> Optional[str]:
    """Return how a stack ends, None if there is none."""
    return stack.end if isinstance(stack, Stack) else None


def shown_with(columns: Sequence[Column], settings: Mapping[str, Any]) -> tuple[Column, ...]:
    """Return the columns without those of user stacks, unless these settings fill them."""
    if wants_stacks(settings):
        return tuple(columns)
    return tuple(column for column in columns if not is_on_request(column))


def decoder_with(
    record: type[Record], settings: Mapping[str, Any]
) -> Callable[[Sequence[Sequence[Any]]], Columns]:
    """Return the decoder of events, with their user stacks only if these settings fill them."""
    decode = record.batch_decoder()
    if not any(isinstance(column, UserStack) for column in record.columns):
        return decode

    def without(raws: Sequence[Sequence[Any]]) -> Columns:
        columns = decode(raws)
        del columns["stack"], columns["stack_end"]
        return columns

    def with_end(raws: Sequence[Sequence[Any]]) -> Columns:
        columns = decode(raws)
        return {**columns, "stack_end": [end_of(stack) for stack in columns["stack"]]}

    return with_end if wants_stacks(settings) else without


def is_on_request(column: Column) -> bool:
    """Return whether the column is absent from all formats unless an option asks for it."""
    return isinstance(column, (UserStack, StackEnd))


def stacks_last(columns: Sequence[Column]) -> list[Column]:
    """Return the columns with stacks, which take lines of their own, after all others."""
    return sorted(columns, key=lambda column: column.name in ("stack", "stack_end"))
