"""A program's code at every level: what the renderer wrote, LLVM IR before and after optimisation,
assembly."""

from __future__ import annotations

import functools
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from tinygrad.uop.ops import UOp

from tgx import model
from tgx.adapter import lines
from tgx.adapter.wording import closed, language


def added(record: model.Program, prg: UOp, optimized: Mapping[str, bytes]) -> model.Program:
    """A program with its source, the lines of which know their UOps, and the panes below it.

    ``optimized`` has, by their source, modules that LLVM has optimised already: their bitcode,
    which is written three times as fast as their text.
    """
    source = prg.src[2].arg if len(prg.src) > 2 else ""
    binary = prg.src[3].arg if len(prg.src) > 3 else b""
    renderer = _renderer(record.device)
    code = model.Code("source", source, language(source))
    if source in optimized:
        below = _below_ir(renderer.compiler, renderer.compiler.text_of(optimized[source]))
    else:
        below = _below(record.device, getattr(renderer, "compiler", None), source, binary)
    if renderer is not None:
        code = lines.traced(code, prg, [*closed(prg.src[1].src)], renderer)
    known = (code, *(c for c in below if c.text)) if source else ()
    levels = {c.level for c in known}
    return replace(record, code=(*known, *(c for c in record.code if c.level not in levels)))


@functools.cache
def _renderer(device: str) -> Any:
    from tinygrad import Device

    try:
        return Device[device.split(",")[0]].renderer
    except Exception:  # a device that is not here: a trace can still be made of its source
        return None


def _below(device: str, compiler: Any, source: str, binary: bytes) -> list[model.Code]:
    if hasattr(compiler, "optimized_ir"):
        return _below_ir(compiler, compiler.optimized_ir(source))
    if source.lstrip().startswith((".version", "//")) and ".visible" in source:
        return [model.Code("ptx", source, "ptx")]
    if binary[:2] == b"//" and b".visible .entry" in binary:  # CUDA: what its compiler hands on
        return [model.Code("ptx", binary.decode(errors="replace").rstrip("\0"), "ptx")]
    if binary[:4] == b"\x7fELF" or device.startswith("CPU"):
        return [model.Code("asm", disassembled(binary), "asm")] if binary else []
    return []


def _below_ir(compiler: Any, module: str) -> list[model.Code]:
    """Below TGX's own IR: its compiler shows every level."""
    return [
        model.Code("ir_opt", module, "llvm"),
        model.Code("asm", compiler.assembly_of(module), "asm"),
    ]


def disassembled(binary: bytes) -> str:
    """An object file's machine code as text, with the system's objdump; "" where there is none."""
    tool = shutil.which("objdump") or shutil.which("llvm-objdump")
    if tool is None or binary[:4] != b"\x7fELF":
        return ""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.o"
        path.write_bytes(binary)
        done = subprocess.run(
            [tool, "-d", "--no-show-raw-insn", str(path)],
            capture_output=True,
            text=True,
            timeout=30,
        )
    rows = done.stdout.splitlines()
    return "\n".join(row for row in rows if row and "file format" not in row)
