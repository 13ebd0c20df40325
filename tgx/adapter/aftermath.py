"""What is worked out once the program has ended: loop nests, and code at the levels below the source."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tgx.adapter.capture import Session
    from tgx.adapter.writing import Recorder


def complete(recorder: Recorder, session: Session) -> list[str]:
    """Adds to the programs; says what could not be added."""
    return []
