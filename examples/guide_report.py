"""What a training run leaves behind: files that are never half written, curves, a table.

    python examples/guide_report.py curves.csv   # draw curves.svg again from its CSV

Shared by the examples that train. Only NumPy and the standard library are used (and rich, for
the table), so the files can be written whatever device the training ran on.
"""

import csv
import io
import json
import math
import os
import signal
import statistics
import struct
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

Point = Mapping[str, float | None]  # one row of curves.csv
COLUMNS = ("step", "epoch", "train_loss", "train_accuracy", "test_loss", "test_accuracy")


# ---- a run, as it is measured ------------------------------------------------------------------

class Report:
    """Collects what a training run measures, and turns it into files and a table."""

    began = time.perf_counter()  # when the program was loaded: `seconds` leaves nothing out

    def __init__(self, title: str, steps: int, metrics: Mapping[str, object]):
        """`steps` make an epoch; `metrics` are what is known before the training."""
        self.title, self.steps = title, steps
        self.epoch_began = time.perf_counter()
        self.points: list[dict[str, float]] = []  # the curves
        self.pace: list[float] = []  # seconds a step, one for each reading
        self.sums = np.zeros(3)  # this epoch's steps, losses and accuracies
        self.metrics = dict(metrics) | {
            "test_accuracy": None, "test_loss": None, "train_accuracy": None, "train_loss": None,
            "steps": 0, "epochs": 0, "finished": False,
            "seconds": 0.0, "epoch_seconds": [], "ms_per_step": 0.0}

    def read(self, steps: int, loss: float, accuracy: float, seconds: float) -> None:
        """Means over the last `steps` training steps, and how many seconds each of them took."""
        done = self.metrics["steps"] + steps
        self.sums += np.array([1, loss, accuracy]) * steps
        mean_loss, mean_accuracy = (self.sums[1:] / self.sums[0]).tolist()
        self.metrics.update(steps=done, train_loss=mean_loss, train_accuracy=mean_accuracy,
                            test_loss=None, test_accuracy=None)  # not of these weights any more
        self.points.append({"step": done, "epoch": done / self.steps,
                            "train_loss": loss, "train_accuracy": accuracy})
        self.pace.append(seconds)

    def tested(self, loss: float, accuracy: float) -> None:
        """What the test set said about the weights as they are now."""
        now = time.perf_counter()
        self.points[-1].update(test_loss=loss, test_accuracy=accuracy)
        epochs = self.metrics["steps"] // self.steps
        self.metrics.update(test_loss=loss, test_accuracy=accuracy, epochs=epochs,
                            finished=epochs == self.metrics["epochs_asked"])
        self.metrics["epoch_seconds"].append(now - self.epoch_began)
        self.epoch_began, self.sums = now, np.zeros(3)

    def save(self, folder: Path | None, weights: Mapping[str, np.ndarray]) -> OSError | None:
        """Write every file, if there is a folder; a failure is returned, not raised."""
        self.metrics["seconds"] = time.perf_counter() - self.began
        self.metrics["ms_per_step"] = 1000 * statistics.median(self.pace)
        try:
            if folder is not None:
                save_files(folder, {
                    "weights.safetensors": safetensors_bytes(weights),
                    "weights.npz": npz_bytes(weights),
                    "metrics.json": json_bytes(self.metrics),
                    "curves.csv": csv_bytes(self.points),
                    "curves.svg": curves_svg(self.title, self.points).encode()})
        except OSError as error:
            return error
        return None

    def line(self) -> str:
        """The epoch that was just tested, in one line."""
        m = self.metrics
        return (f"epoch {m['steps'] / self.steps:.3g}  training loss {m['train_loss']:.4f}  "
                f"test loss {m['test_loss']:.4f}  test accuracy {m['test_accuracy']:.2%}  "
                f"{m['epoch_seconds'][-1]:.1f} s")

    def table(self):
        """The whole run, for rich to print."""
        from rich.table import Table
        m = self.metrics
        table = Table(title=self.title, show_header=False)
        table.add_row("parameters", f"{m['parameters']:,}")
        table.add_row("training", f"{m['steps']:,} steps of {m['batch']} images "
                                  f"({m['steps'] / self.steps:.3g} epochs)")
        table.add_row("time", f"{m['seconds']:.1f} s in all, {m['ms_per_step']:.2f} ms a step")
        table.add_row("test loss", f"{m['test_loss']:.4f}")
        table.add_row("test accuracy", f"{m['test_accuracy']:.2%}", style="bold")
        return table


class Stop:
    """While it is open, the first Ctrl-C only asks to stop after this step; another one stops."""

    asked = False

    def __enter__(self) -> "Stop":
        self.before = signal.signal(signal.SIGINT, self.heard)
        return self

    def heard(self, *_) -> None:
        self.asked = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.write(2, b"\nstopping after this step (Ctrl-C again: at once)\n")

    def __exit__(self, *_) -> None:
        signal.signal(signal.SIGINT, self.before)


def progress_bar(console):
    """One line in a terminal, nothing in a file; a task's field `now` says what it is at."""
    from rich import progress as rich
    return rich.Progress(rich.TextColumn("{task.description}"), rich.BarColumn(),
                         rich.MofNCompleteColumn(), rich.TextColumn("{task.fields[now]}"),
                         rich.TimeRemainingColumn(), console=console,
                         disable=not console.is_terminal)


# ---- files -------------------------------------------------------------------------------------

def save_files(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Write all of `contents` (name -> bytes) into `folder`, or leave its files as they were.

    Everything goes to temporary files first; only when all of it is safely on the disk do they
    take their names, which cannot fail for want of space. A full disk, a crash or Ctrl-C in the
    middle therefore never costs the previous version.
    """
    folder.mkdir(parents=True, exist_ok=True)
    temporary = {name: folder / f".{name}.{os.getpid()}.tmp" for name in contents}
    try:
        for name, content in contents.items():
            with temporary[name].open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        for name, path in temporary.items():
            path.replace(folder / name)
    finally:
        for path in temporary.values():
            path.unlink(missing_ok=True)


def json_bytes(value: object) -> bytes:
    """Readable JSON; NaN and infinity, which JSON does not have, become null."""
    def finite(item: object) -> object:
        if isinstance(item, float) and not math.isfinite(item):
            return None
        if isinstance(item, Mapping):
            return {key: finite(inner) for key, inner in item.items()}
        return [finite(inner) for inner in item] if isinstance(item, (list, tuple)) else item
    return (json.dumps(finite(value), indent=2, allow_nan=False) + "\n").encode()


def npz_bytes(arrays: Mapping[str, np.ndarray]) -> bytes:
    """NumPy's own archive: `numpy.load("weights.npz")["name"]` reads it back."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def safetensors_bytes(arrays: Mapping[str, np.ndarray]) -> bytes:
    """The safetensors format: the header's length, a JSON header, then the raw elements.

    tinygrad's `nn.state.safe_save` writes the same format, through its DISK and CPU devices;
    the latter needs a C compiler, which this file must not.
    """
    header, data = {}, b""
    for name, array in arrays.items():
        kind = {"f": "F", "i": "I", "u": "U"}[array.dtype.kind] + str(8 * array.dtype.itemsize)
        raw = array.astype(array.dtype.newbyteorder("<")).tobytes()
        header[name] = {"dtype": kind, "shape": array.shape,
                        "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the elements start at a multiple of 8
    return struct.pack("<Q", len(text)) + text + data


def csv_bytes(points: Sequence[Point]) -> bytes:
    """The curves as numbers; a cell is empty where nothing was measured."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for point in points:
        row = [point.get(column) for column in COLUMNS]
        writer.writerow("" if value is None else f"{value:.6g}" for value in row)
    return text.getvalue().encode()


def read_csv(path: Path) -> list[Point]:
    with path.open(newline="") as file:
        return [{key: float(value) if value else None for key, value in row.items()}
                for row in csv.DictReader(file)]


# ---- the curves, as SVG ------------------------------------------------------------------------

WIDTH, HEIGHT = 960, 436
# Okabe and Ito's colours, told apart by every kind of colour vision; lighter ones when it is dark.
STYLE = """
  text { font: 13px system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; fill: #24292f }
  .title { font-size: 17px; font-weight: 600 } .quiet { fill: #57606a }
  .page { fill: #ffffff } .grid { stroke: #d8dee4; stroke-width: 1 }
  .raw, .train, .test { fill: none; stroke-linejoin: round; stroke-linecap: round }
  .raw { stroke: #0072b2; stroke-width: 1.2; opacity: .3 }
  .train { stroke: #0072b2; stroke-width: 2.2 }
  .test { stroke: #d55e00; stroke-width: 2; stroke-dasharray: 1 5 }
  .dot { fill: #d55e00; stroke: #ffffff; stroke-width: 1.5 }
  .value { font-weight: 600; paint-order: stroke; stroke: #ffffff; stroke-width: 4px }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3 } .quiet { fill: #9da7b3 }
    .page { fill: #0d1117 } .grid { stroke: #30363d }
    .raw, .train { stroke: #56b4e9 } .test { stroke: #e69f00 }
    .dot { fill: #e69f00; stroke: #0d1117 } .value { stroke: #0d1117 }
  }
"""


def curves_svg(title: str, points: Sequence[Point]) -> str:
    """Loss and accuracy over the epochs, side by side: training as lines, the test set as dots."""
    last = max((p["epoch"] for p in points), default=1.0)
    floor = accuracy_floor(points)
    panels = [
        panel("loss", "cross-entropy loss (log scale)", 64, last, points, *loss_range(points)),
        panel("accuracy", "accuracy, %", 552, last, points, floor, 100.0,
              scale=lambda value: value, ticks=nice_ticks(floor, 100.0, 5)),
    ]
    legend = "".join([
        '<path class="raw" d="M64 66h26"/><text x="98" y="70">training, mean of a few steps</text>',
        '<path class="train" d="M314 66h26"/><text x="348" y="70">training, smoothed</text>',
        '<path class="test" d="M494 66h26"/><circle class="dot" cx="507" cy="66" r="4.5"/>',
        '<text x="528" y="70">test set, after each epoch</text>'])
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" '
        f'height="{HEIGHT}" role="img" aria-labelledby="title">',
        f'<title id="title">{escape(title)}: loss and accuracy while training</title>',
        f"<style>{STYLE}</style>",
        f'<rect class="page" width="{WIDTH}" height="{HEIGHT}" rx="6"/>',
        f'<text class="title" x="64" y="38">{escape(title)}</text>', legend, *panels, "</svg>\n"])


def panel(name, label, left, last, points, bottom, top, scale=math.log10, ticks=None) -> str:
    """One set of axes, 384 pixels wide, with the curves `train_NAME` and `test_NAME`."""
    width, high, low = 384, 118, 384  # in pixels; y grows downwards
    percent = 100 if name == "accuracy" else 1

    def at_x(epoch: float) -> float:
        return left + width * epoch / last

    def at_y(value: float) -> float:
        return low - (low - high) * (scale(value) - scale(bottom)) / (scale(top) - scale(bottom))

    def path(css: str, curve: list[tuple[float, float]]) -> str:
        moves = " ".join(f"{at_x(x):.1f},{at_y(y):.1f}" for x, y in curve)
        return f'<polyline class="{css}" points="{moves}"/>' if len(curve) > 1 else ""

    def curve_of(column: str) -> list[tuple[float, float]]:
        found = [(p["epoch"], p.get(column)) for p in points]
        return [(x, percent * y) for x, y in found
                if y is not None and math.isfinite(y) and (y > 0 or name == "accuracy")]

    parts = [f'<text class="quiet" x="{left}" y="{high - 8}">{label}</text>']
    for value in log_ticks(bottom, top) if ticks is None else ticks:
        parts.append(f'<path class="grid" d="M{left} {at_y(value):.1f}h{width}"/>'
                     f'<text class="quiet" text-anchor="end" x="{left - 8}" '
                     f'y="{at_y(value) + 4:.1f}">{value:g}</text>')
    parts.append(f'<path class="grid" d="M{left} {low}h{width}"/>')
    for value in [tick for tick in nice_ticks(0, last, 6) if last < 2 or tick == int(tick)]:
        parts.append(f'<text class="quiet" text-anchor="middle" x="{at_x(value):.1f}" '
                     f'y="{low + 19}">{value:g}</text>')
    parts.append(f'<text class="quiet" text-anchor="middle" x="{left + width / 2}" '
                 f'y="{low + 39}">epoch</text>')
    train, test = curve_of(f"train_{name}"), curve_of(f"test_{name}")
    parts += [f'<clipPath id="{name}"><rect x="{left}" y="{high}" width="{width + 8}" '
              f'height="{low - high}"/></clipPath><g clip-path="url(#{name})">',
              path("raw", train), path("train", smooth(train)), path("test", test), "</g>"]
    parts += [f'<circle class="dot" cx="{at_x(x):.1f}" cy="{at_y(y):.1f}" r="4.5"/>'
              for x, y in test if bottom <= y <= top]
    if test and bottom <= test[-1][1] <= top:
        x, y = test[-1]
        text = f"{y:.2f} %" if name == "accuracy" else f"{y:.3f}"
        shift = 22 if name == "accuracy" else -14  # below the accuracies, above the losses
        parts.append(f'<text class="value" text-anchor="end" x="{at_x(x) + 8:.1f}" '
                     f'y="{at_y(y) + shift:.1f}">{text}</text>')
    return "\n".join(parts)


def smooth(curve: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Each point becomes the mean of its neighbours, as many on the left as on the right."""
    reach = max(2, len(curve) // 60)
    result = []
    for i, (x, _) in enumerate(curve):
        k = min(reach, i, len(curve) - 1 - i)
        result.append((x, sum(y for _, y in curve[i - k:i + k + 1]) / (2 * k + 1)))
    return result


def loss_range(points: Sequence[Point]) -> tuple[float, float]:
    """Room for every positive loss, at least a factor of ten."""
    losses = [loss for p in points for loss in (p.get("train_loss"), p.get("test_loss"))
              if loss is not None and math.isfinite(loss) and loss > 0] or [1.0]
    top = max(losses) * 1.15
    return min(min(losses) / 1.15, top / 10), top


def accuracy_floor(points: Sequence[Point]) -> float:
    """Where the accuracy axis starts: low enough for the test set and most of the training."""
    train = sorted(100 * p["train_accuracy"] for p in points if p.get("train_accuracy") is not None)
    lowest = min([100 * p["test_accuracy"] for p in points if p.get("test_accuracy") is not None]
                 + train[len(train) // 8:][:1], default=0.0)
    return max(floor for floor in (0.0, 50.0, 80.0, 90.0, 95.0, 98.0) if floor <= lowest)


def nice_ticks(start: float, stop: float, at_most: int) -> list[float]:
    """Round numbers (steps of 1, 2 or 5 times a power of ten) from `start` to `stop`."""
    rough = (stop - start) / at_most
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * k for k in (1, 2, 5, 10) if unit * k >= rough * 0.999)
    first = math.ceil(start / step - 1e-9)
    return [round(step * k, 10) for k in range(first, math.floor(stop / step + 1e-9) + 1)]


def log_ticks(start: float, stop: float) -> list[float]:
    """1, 2 and 5 times the powers of ten between `start` and `stop`."""
    powers = range(math.floor(math.log10(start)), math.ceil(math.log10(stop)) + 1)
    return [tick for p in powers for tick in (10.0**p, 2 * 10.0**p, 5 * 10.0**p)
            if start <= tick <= stop]


def escape(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(f"usage: python {sys.argv[0]} curves.csv [TITLE]")
    source = Path(sys.argv[1])
    drawing = curves_svg(" ".join(sys.argv[2:]) or source.stem, read_csv(source))
    save_files(source.resolve().parent, {source.stem + ".svg": drawing.encode()})
    print(f"drew {source.with_suffix('.svg')}")
