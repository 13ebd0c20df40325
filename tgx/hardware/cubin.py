"""What a cubin says about its kernels: registers, shared memory, stack, size of the code.

A cubin is an ELF64 file, and all of this stands in its sections; no NVIDIA tool is needed to read
it, and none is on a laptop without CUDA. For a kernel `k`:

    .text.k         the machine code
    .nv.shared.k    its size is the shared memory the kernel declares; for sm_100 and newer it
                    includes the 1 KiB that the driver keeps for itself
    .nv.info        records (format, attribute, size, value...) for all kernels: 0x2f registers,
                    0x11 frame, 0x12 smallest stack
    .nv.info.k      records for k alone: 0x05 the threads it was compiled for, 0x4c barriers

Up to sm_89 the registers also stand in the top byte of .text.k's sh_info, and up to sm_90 the
barriers in its flags.

The reader is for files from anywhere, so it believes nothing: every offset is checked against the
file's size, counts are bounded, and what does not hold is a BadInput.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from tgx.errors import BadInput

MAX_SECTIONS = 65_536
MAX_NAME = 4_096  # longer names of sections and kernels are not ours
MAX_NAMES = 8 << 20  # characters of all names together: each may be used many times
CUDA = 190  # the ELF machine number of NVIDIA's GPUs
NOBITS = 8  # a section that has a size, and no bytes in the file
SYMTAB = 2
EXECUTABLE = 4
RESERVED_SHARED = 1024

# Attributes of .nv.info, by the names `readelf`-like tools give them.
MAX_THREADS, FRAME_SIZE, MIN_STACK_SIZE, REGCOUNT, NUM_BARRIERS = 0x05, 0x11, 0x12, 0x2F, 0x4C


@dataclass(frozen=True)
class CubinKernel:
    """One kernel as compiled. Sizes are in bytes."""

    name: str
    arch: str
    registers: int  # for each thread
    shared: int  # static shared memory of a block, without what the driver reserves
    stack: int  # for each thread; spilled registers and local arrays live there
    barriers: int
    code: int
    max_threads: int  # the most threads a block may have; 0 where it was compiled without a limit


@dataclass(frozen=True)
class _Section:
    name: str
    kind: int
    flags: int
    offset: int
    size: int
    link: int
    info: int
    entry: int


def read(data: bytes) -> tuple[CubinKernel, ...]:
    """The kernels of a cubin, in the file's order."""
    return _Reader(data).kernels()


class _Reader:
    def __init__(self, data: bytes) -> None:
        self.data, self.named = data, 0
        if data[:4] != b"\x7fELF":
            start = data[:16]
            what = "PTX text" if start.lstrip()[:2] in (b"//", b".v") else f"it starts {start!r}"
            raise _bad(f"not an ELF file: {what}")
        if data[4:6] != b"\x02\x01":
            raise _bad("not a 64-bit little-endian ELF file")
        machine = self.unpack("<H", 18)[0]
        if machine != CUDA:
            raise _bad(f"code for machine {machine}, not for an NVIDIA GPU ({CUDA})")
        self.sections = self._sections()

    def unpack(self, form: str, offset: int) -> tuple[int, ...]:
        size = struct.calcsize(form)
        if offset < 0 or offset + size > len(self.data):
            raise _bad(f"cut short: {size} bytes at {offset} of {len(self.data)}")
        return struct.unpack_from(form, self.data, offset)

    @property
    def arch(self) -> str:
        """Old files keep the compute capability in the flags' first byte, newer in the second."""
        version = self.data[8]
        flags = self.unpack("<I", 48)[0]
        return f"sm_{flags >> 8 & 0xFF if version >= 8 else flags & 0xFF}"

    def _sections(self) -> tuple[_Section, ...]:
        table = self.unpack("<Q", 40)[0]
        entry, count, names_at = self.unpack("<HHH", 58)
        if count > MAX_SECTIONS or (count and entry < 64):
            raise _bad(f"{count} section headers of {entry} bytes")
        rows = [self.unpack("<IIQQQQIIQQ", table + i * entry) for i in range(count)]
        if names_at >= count:
            raise _bad(f"its names are in section {names_at} of {count}")
        names = rows[names_at]
        sections = []
        for name, kind, flags, _, offset, size, link, info, _, item in rows:
            if kind != NOBITS and offset + size > len(self.data):
                raise _bad(f"a section of {size} bytes at {offset} of {len(self.data)}")
            text = self.string(names[4], names[5], name)
            sections.append(_Section(text, kind, flags, offset, size, link, info, item))
        return tuple(sections)

    def string(self, start: int, size: int, offset: int) -> str:
        """The zero-ended string at `offset` of a table of strings."""
        if offset >= size or start + size > len(self.data):
            raise _bad(f"a name at {offset} of a table of {size} bytes")
        end = self.data.find(b"\0", start + offset, start + min(size, offset + MAX_NAME))
        if end < 0:
            raise _bad(f"a name at {offset} that does not end")
        self.named += end - start - offset
        if self.named > MAX_NAMES:
            raise _bad(f"over {MAX_NAMES:,} characters in names")
        return self.data[start + offset : end].decode(errors="replace")

    def symbols(self) -> tuple[str, ...]:
        """Names by symbol number; a section symbol's own name is empty."""
        table = next((s for s in self.sections if s.kind == SYMTAB), None)
        if table is None:
            return ()
        if not 0 < table.link < len(self.sections) or table.entry < 24:
            raise _bad("its table of symbols has no names")
        names = self.sections[table.link]
        return tuple(
            self.string(names.offset, names.size, self.unpack("<I", table.offset + at)[0])
            for at in range(0, table.size - table.entry + 1, table.entry)
        )

    def records(self, section: _Section) -> Iterator[tuple[int, bytes]]:
        """The (attribute, value) records of an .nv.info section."""
        at, end = section.offset, section.offset + section.size
        while at + 4 <= end:
            form, attribute, number = self.unpack("<BBH", at)
            at += 4
            if form != 4:  # the value is in the record's own last two bytes
                yield attribute, number.to_bytes(2, "little")
                continue
            if at + number > end:
                raise _bad(f"{section.name}: a record of {number} bytes at {at}")
            yield attribute, self.data[at : at + number]
            at += number

    def kernels(self) -> tuple[CubinKernel, ...]:
        by_name = {section.name: section for section in self.sections}
        symbols = self.symbols()
        facts: dict[tuple[int, str], int] = {}
        for attribute, value in self.records(by_name[".nv.info"]) if ".nv.info" in by_name else ():
            if len(value) >= 8:
                symbol, number = struct.unpack_from("<II", value)
                if symbol < len(symbols):
                    facts[attribute, symbols[symbol]] = number
        texts = [s for s in self.sections if s.name.startswith(".text.") and s.flags & EXECUTABLE]
        if len({s.name for s in texts}) != len(texts):
            raise _bad("two kernels of one name")
        return tuple(
            self.kernel(section, section.name.removeprefix(".text."), by_name, facts)
            for section in texts
        )

    def kernel(
        self,
        text: _Section,
        name: str,
        by_name: dict[str, _Section],
        facts: dict[tuple[int, str], int],
    ) -> CubinKernel:
        registers = facts.get((REGCOUNT, name), text.info >> 24)
        shared = by_name[f".nv.shared.{name}"].size if f".nv.shared.{name}" in by_name else 0
        if ".nv.shared.reserved.0" in by_name and shared >= RESERVED_SHARED:
            shared -= RESERVED_SHARED
        threads, barriers = 0, text.flags >> 20 & 0x7F
        info = by_name.get(f".nv.info.{name}")
        for attribute, value in self.records(info) if info is not None else ():
            if attribute == MAX_THREADS and len(value) >= 12:
                x, y, z = struct.unpack_from("<III", value)
                threads = x * y * z
            elif attribute == NUM_BARRIERS and value:
                barriers = value[0]
        return CubinKernel(
            name=name,
            arch=self.arch,
            registers=registers,
            shared=shared,
            stack=facts.get((MIN_STACK_SIZE, name), facts.get((FRAME_SIZE, name), 0)),
            barriers=barriers,
            code=text.size,
            max_threads=threads,
        )


def _bad(what: str) -> BadInput:
    return BadInput(f"this is no cubin: {what}", "an ELF64 file that nvrtc, ptxas or nvcc wrote")
