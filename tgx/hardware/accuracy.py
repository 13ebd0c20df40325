"""How good predictions were: errors of one list of times against another. Pure arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tgx.errors import BadInput


@dataclass(frozen=True)
class Accuracy:
    """Of `count` predictions. Errors are relative to what was measured: 0.25 is a quarter off.

    `mape` is their mean and `p90` what nine of ten stay below; `spearman` says whether the order
    was right (1: all in order, 0: none), None where there is no order to speak of.
    """

    count: int
    mape: float
    p90: float
    spearman: float | None

    def __str__(self) -> str:
        order = "unknown" if self.spearman is None else f"{self.spearman:.2f}"
        return (
            f"{self.count} launches, MAPE {self.mape:.0%}, nine of ten within {self.p90:.0%}, "
            f"Spearman {order}"
        )


def accuracy(predicted: Sequence[float], measured: Sequence[float]) -> Accuracy:
    if len(predicted) != len(measured) or not measured or min(measured) <= 0:
        raise BadInput(
            f"{len(predicted)} predictions for {len(measured)} measurements",
            "one for each, and measured times above 0",
        )
    errors = [abs(p - m) / m for p, m in zip(predicted, measured, strict=True)]
    return Accuracy(
        len(errors), sum(errors) / len(errors), quantile(errors, 0.9), spearman(predicted, measured)
    )


def quantile(values: Sequence[float], share: float) -> float:
    """Of sorted values the one that far along, in between by a straight line, as NumPy does."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def spearman(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Pearson's correlation of the ranks; equal values share the mean of their ranks."""
    x, y = _ranks(a), _ranks(b)
    if len(x) < 3:
        return None
    middle = (len(x) + 1) / 2
    both = sum((p - middle) * (q - middle) for p, q in zip(x, y, strict=True))
    spread = sum((p - middle) ** 2 for p in x) * sum((q - middle) ** 2 for q in y)
    return both / spread**0.5 if spread else None


def _ranks(values: Sequence[float]) -> list[float]:
    return [
        sum(other < value for other in values) + (sum(other == value for other in values) + 1) / 2
        for value in values
    ]
