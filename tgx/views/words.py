"""How numbers and names read: the same in every view."""

from __future__ import annotations

from tgx.safe import clean as clean

LONGEST = 4_000
"""Characters of one line at most, whoever asks: a name may be a megabyte long."""


def line(text: str, width: int = LONGEST) -> str:
    """Clean text on one line, cut to `width` characters."""
    # what was cut off here could only have shown had it followed thousands of blanks
    text = " ".join(clean(text[: 8 * width + 1_000]).split())
    return text if len(text) <= width else text[: width - 1] + "…"


def _scaled(value: float, step: float, units: tuple[str, ...]) -> str:
    scale = 0
    while abs(value) >= step * 0.9995 and scale < len(units) - 1:
        value, scale = value / step, scale + 1
    digits = f"{value:.0f}" if scale == 0 or abs(value) >= 99.95 else f"{value:.3g}"
    return f"{digits} {units[scale]}".rstrip()


def size(nbytes: float) -> str:
    """Bytes: `1.6 MB` (powers of ten, as in devices' data sheets)."""
    return "" if nbytes < 0 else _scaled(nbytes, 1000, ("B", "kB", "MB", "GB", "TB"))


def number(value: float) -> str:
    """A count: `25.7 M`."""
    return "" if value < 0 else _scaled(value, 1000, ("", "k", "M", "G", "T"))


def times(part: float, whole: float) -> str:
    """How many times something is another: `0.37×`; "" where there is nothing to compare with."""
    return f"{part / whole:.3g}×" if whole > 0 and part >= 0 else ""


def duration(us: float) -> str:
    """Microseconds: `12 µs`, `0.42 ms`."""
    if us < 0:
        return ""
    if us < 99.5:
        return f"{us:.2g} µs"
    return f"{us / 1e3:.3g} ms" if us < 999_500 else f"{us / 1e6:.3g} s"


def rate(per_second: float, unit: str) -> str:
    """A rate: `31 GF/s`, `9.4 GB/s`."""
    if per_second < 0:
        return ""
    return _scaled(per_second, 1000, tuple(f"{p}{unit}/s" for p in ("", "k", "M", "G", "T")))


def percent(part: float) -> str:
    """A share: `38 %`, `0.4 %`."""
    if part < 0:
        return ""
    if 0 < part < 0.0005:
        return "<0.1 %"
    return f"{part * 100:.0f} %" if part >= 0.0995 else f"{part * 100:.1f} %"


def plural(n: int, word: str) -> str:
    return f"{n:,} {word}{'' if n == 1 else 's'}"
