"""Colours of every picture: few, told apart by colour-blind eyes, and by lightness alone in print.

Hues after Okabe and Ito; each table's lightness falls in steps, so greyscale keeps the order.
"""

from __future__ import annotations

# tone -> (fill, text)
TONES: dict[str, tuple[str, str]] = {
    "": ("#ffffff", "#1b1f24"),
    "data": ("#f1f1ee", "#1b1f24"),
    "forward": ("#c7e3f7", "#1b1f24"),
    "backward": ("#f2b255", "#1b1f24"),
    "optimizer": ("#00694f", "#ffffff"),
    "bound-unknown": ("#f1f1ee", "#1b1f24"),
    "bound-launch": ("#f0e3a1", "#1b1f24"),
    "bound-memory": ("#79bbe3", "#1b1f24"),
    "bound-compute": ("#b24a00", "#ffffff"),
    "cost-0": ("#f6f4ec", "#1b1f24"),
    "cost-1": ("#f5dfa3", "#1b1f24"),
    "cost-2": ("#eeb25a", "#1b1f24"),
    "cost-3": ("#cf6a2c", "#ffffff"),
    "cost-4": ("#7a1f1f", "#ffffff"),
}

# mark -> (border colour, border style, width)
MARKS: dict[str, tuple[str, str, str]] = {
    "": ("#57606a", "solid", "1"),
    "chosen": ("#1b1f24", "bold", "3"),
    "changed": ("#b24a00", "bold", "2"),
    "added": ("#00694f", "bold", "2.5"),
    "removed": ("#b3261e", "dashed", "2"),
}

MARK_WORDS = {
    "chosen": "what you asked for",
    "changed": "changed",
    "added": "new in this step",
    "removed": "gone after this step",
}
