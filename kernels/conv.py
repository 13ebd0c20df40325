"""A 3×3 convolution, padding 1, stride 1, images in the order NCHW:

    y[n, o, h, w] = sum over c, i, j of x[n, c, h + i - 1, w + j - 1] · f[o, c, i, j]

18·c operations for each number of y. `shape` is (images, channels in, channels out, height, width).

    python -m tgx.kernels.conv

It is a matrix product in disguise: output channels times pixels, summed over channels and taps.
Its own are the edge, where taps fall outside the picture, and rows as short as 28, 14 or 7.
"""

from __future__ import annotations

import numpy as np
from tinygrad import Tensor

from tgx.kernels.gemm import blocks
from tgx.kernels.ir import Buffer, Code, Value, Variable
from tgx.kernels.lesson import Lesson, Shape, Version, call, main, registers

VECTORS = 3  # of pixels in a tile
TAPS = [(i, j) for i in range(3) for j in range(3)]
CHUNKS = 16


def naive(k: Code, shape: Shape) -> int:
    images, inputs, outputs, height, width = shape
    y, x, f = k.buffers
    with (
        k.loop(0, images) as n,
        k.loop(0, outputs) as o,
        k.loop(0, height) as h,
        k.loop(0, width) as w,
    ):
        total = Variable(k, k.splat(0, 1))
        with k.loop(0, inputs) as c, k.loop(0, 3) as i, k.loop(0, 3) as j:
            row, column = h + i - 1, w + j - 1
            with k.when("ult", row, height), k.when("ult", column, width):  # -1 is huge unsigned
                pixel = x.load(((n * inputs + c) * height + row) * width + column)
                total.set(total.get() + pixel * f.load((o * inputs + c) * 9 + i * 3 + j))
        y.store(((n * outputs + o) * height + h) * width + w, total.get())
    return 1


def order(k: Code, shape: Shape) -> int:
    images, inputs, outputs, height, width = shape
    y, x, f = k.buffers
    plane = height * width
    with k.loop(0, images) as n, k.loop(0, outputs) as o:
        out = (n * outputs + o) * plane
        with k.loop(0, plane) as p:
            y.store(out + p, k.splat(0, 1))
        with k.loop(0, inputs) as c:
            picture = (n * inputs + c) * plane
            for i, j in TAPS:
                weight = f.load((o * inputs + c) * 9 + (i * 3 + j))
                rows = max(0, 1 - i), min(height, height + 1 - i)
                columns = max(0, 1 - j), min(width, width + 1 - j)
                with k.loop(*rows) as h, k.loop(*columns) as w:
                    place = h * width + w
                    pixel = x.load(picture + place + ((i - 1) * width + j - 1))
                    y.store(out + place, k.fma(weight, pixel, y.load(out + place)))
    return 1


def edge_masks(height: int, width: int, lanes: int) -> list[int]:
    """For every vector of the picture, read as one long row, and every tap: the lanes whose
    neighbour at that tap lies inside, as bits."""
    masks = []
    for first in range(0, height * width, lanes):
        for i, j in TAPS:
            bits = 0
            for lane in range(lanes):
                row, column = divmod(first + lane, width)
                if row < height and 0 <= row + i - 1 < height and 0 <= column + j - 1 < width:
                    bits |= 1 << lane
            masks.append(bits)
    return masks


def tile(
    k: Code,
    shape: Shape,
    masks: str,
    block: Value,
    picture: Value,
    out: Value,
    *,
    channels: int,
    vectors: int,
    weights: Buffer,
    weight_at: Value | int,
    weight_pitch: tuple[int, int, int],
) -> None:
    """`channels` outputs × `vectors` of pixels stay in registers while all inputs and taps are
    added. `weight_pitch`: from one output, input and tap to the next."""
    _images, inputs, _outputs, height, width = shape
    y, x, _ = k.buffers
    plane, lanes = height * width, k.lanes
    per_output, per_input, per_tap = weight_pitch
    totals = [Variable(k, k.splat(0, lanes)) for _ in range(channels * vectors)]
    start, number = block * lanes, block * 9
    with k.loop(0, inputs) as c:
        source = c * plane + picture + start
        for t, (i, j) in enumerate(TAPS):
            shift = (i - 1) * width + j - 1
            pixels = [
                x.load(
                    source + (shift + v * lanes), lanes, k.mask(masks, number + (v * 9 + t), lanes)
                )
                for v in range(vectors)
            ]
            for r in range(channels):
                weight = weights.load(c * per_input + weight_at + (r * per_output + t * per_tap))
                for v, pixel in enumerate(pixels):
                    total = totals[r * vectors + v]
                    total.set(k.fma(k.splat(weight, lanes), pixel, total.get()))
    for r in range(channels):
        for v in range(vectors):
            # the middle tap is inside wherever there is a pixel
            inside = k.mask(masks, number + (v * 9 + 4), lanes)
            y.store(start + out + (r * plane + v * lanes), totals[r * vectors + v].get(), inside)


def picture_tiles(k: Code, shape: Shape, masks: str, vectors: int, **rest) -> None:
    """All vectors of one picture, `vectors` at a time, and what is left over."""
    count = -(-shape[3] * shape[4] // k.lanes)
    for first, last, size in blocks(count, vectors):
        with k.loop(first, last, vectors) as block:
            tile(k, shape, masks, block, vectors=size, **rest)


def direct(k: Code, shape: Shape, channels: int, vectors: int) -> int:
    """Tiles of a given size, weights read where they lie."""
    images, inputs, outputs, height, width = shape
    plane = height * width
    masks = k.table(edge_masks(height, width, k.lanes), k.lanes)
    with k.loop(0, images) as n:
        for first, last, size in blocks(outputs, channels):
            with k.loop(first, last, channels) as o:
                picture_tiles(
                    k,
                    shape,
                    masks,
                    vectors,
                    channels=size,
                    picture=n * (inputs * plane),
                    out=(n * outputs + o) * plane,
                    weights=k.buffers[2],
                    weight_at=o * (inputs * 9),
                    weight_pitch=(inputs * 9, 9, 1),
                )
    return 1


def lanes(k: Code, shape: Shape) -> int:
    return direct(k, shape, 1, 1)


def tile_channels() -> int:
    return 8 if registers() == 32 else 4


def tiled(k: Code, shape: Shape) -> int:
    return direct(k, shape, tile_channels(), VECTORS)


def region(k: Code, shape: Shape, strip: tuple, first: Value | int, last: Value | int) -> None:
    """Images from `first` to `last`, output channels of a strip. The weights of a few channels
    are copied once, in the order in which the tiles read them."""
    _images, inputs, outputs, height, width = shape
    plane, f = height * width, k.buffers[2]
    masks = k.table(edge_masks(height, width, k.lanes), k.lanes)
    start, stop, size = strip
    own = k.scratch(inputs * 9 * size)
    with k.loop(start, stop, size) as o:
        with k.loop(0, inputs * 9) as at:
            for r in range(size):
                own.store(at * size + r, f.load((o + r) * (inputs * 9) + at))
        with k.loop(first, last) as n:
            picture_tiles(
                k,
                shape,
                masks,
                VECTORS,
                channels=size,
                picture=n * (inputs * plane),
                out=(n * outputs + o) * plane,
                weights=own,
                weight_at=0,
                weight_pitch=(1, 9 * size, size),
            )


def packed(k: Code, shape: Shape) -> int:
    for strip in blocks(shape[2], tile_channels()):
        region(k, shape, strip, 0, shape[0])
    return 1


def threaded(k: Code, shape: Shape) -> int:
    """Few images: channels are shared out too."""
    images, _, outputs, _, _ = shape
    size = tile_channels()
    whole, rest = outputs // size, outputs % size
    parts = min(images, CHUNKS)
    across = max(1, min(whole, CHUNKS // parts))
    part, column = k.chunk / across, k.chunk - k.chunk / across * across
    first, last = part * images / parts, (part + 1) * images / parts
    if whole:
        start, stop = column * whole / across * size, (column + 1) * whole / across * size
        region(k, shape, (start, stop, size), first, last)
    if rest:
        with k.when("eq", column, across - 1):
            region(k, shape, (whole * size, outputs, rest), first, last)
    return parts * across


def make(shape: Shape) -> list[np.ndarray]:
    images, inputs, outputs, height, width = shape
    random = np.random.default_rng(0)
    return [
        np.zeros((images, outputs, height, width), np.float32),
        random.standard_normal((images, inputs, height, width), np.float32),
        random.standard_normal((outputs, inputs, 3, 3), np.float32),
    ]


def by_numpy(x: np.ndarray, f: np.ndarray) -> np.ndarray:
    """Nine shifted copies of the picture, each times a matrix of weights."""
    height, width = x.shape[2:]
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    return sum(
        np.einsum(
            "oc,nchw->nohw",
            f[:, :, i, j],
            padded[:, :, i : i + height, j : j + width],
            optimize=True,
        )
        for i, j in TAPS
    )


def reference(y: np.ndarray, x: np.ndarray, f: np.ndarray) -> tuple[np.ndarray]:
    return (by_numpy(x.astype(np.float64), f.astype(np.float64)).astype(np.float32),)


LESSON = Lesson(
    name="conv",
    buffers="y x f",
    outputs=1,
    make=make,
    reference=reference,
    generated=lambda x, f: (x.conv2d(f, padding=1),),
    numpy=by_numpy,
    work=lambda s: 18.0 * s[0] * s[1] * s[2] * s[3] * s[4],
    unit="GFLOP/s",
    shapes=((64, 1, 32, 28, 28), (64, 32, 64, 14, 14), (4, 64, 64, 56, 56)),
    versions=(
        Version("naive", "seven loops and a test for the edge at every tap", naive),
        Version(
            "order",
            "taps outside, pixels inside: where a tap stays in the picture is known "
            "before the loop, and pixels are read in a row; y is stored for each tap",
            order,
        ),
        Version(
            "lanes",
            "a picture is one long row of vectors; taps off its edge are masked out, "
            "from a table; a vector of y stays in a register for all taps and channels",
            lanes,
        ),
        Version(
            "tiled",
            "several output channels times three vectors in registers: each pixel "
            "loaded serves all of them, each weight three vectors",
            tiled,
        ),
        Version(
            "packed",
            "the weights of those channels side by side in memory, in the order of "
            "use: one cache line instead of eight",
            packed,
        ),
        Version("threaded", "images, and channels where images are few, are independent", threaded),
    ),
)


def conv3x3(x: Tensor, f: Tensor, version: str = "") -> Tensor:
    """x: (n, c, h, w), f: (o, c, 3, 3), both float32 on TGX; padding 1, stride 1."""
    if tuple(f.shape[2:]) != (3, 3) or f.shape[1] != x.shape[1]:
        raise ValueError(
            f"conv3x3 takes (n, c, h, w) and (o, c, 3, 3), not {x.shape} and {f.shape}"
        )
    n, c, h, w = (int(s) for s in x.shape)
    o = int(f.shape[0])
    out = Tensor.empty(n, o, h, w, device=x.device, dtype="float32")
    return call(LESSON, (n, c, o, h, w), out, x.contiguous(), f.contiguous(), version=version)[0]


if __name__ == "__main__":
    main(LESSON)
