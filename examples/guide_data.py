"""The guide's data sets, as NumPy arrays: one small loader that every example shares.

    python examples/guide_data.py            # what is here, and one digit drawn in the terminal
    python examples/guide_data.py --data DIR # the same for idx files of your own

MNIST comes as four *idx* files, a format that fits in three lines:

    bytes 0-3    0, 0, the element type (8 = unsigned byte), the number of dimensions n
    then         n sizes, each a big-endian 32-bit integer
    then         the elements, last dimension fastest

Nothing here trusts a file: a header is checked before its sizes are used, unpacking stops at
`LIMIT`, the copy that came with tgx must match its SHA-256, and every complaint says what was
found, what was expected and what to do.
"""

import argparse
import hashlib
import lzma
import struct
import sys
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent / "data"
LIMIT = 256 * 2**20  # bytes one file may unpack to; MNIST's largest is 47 million

# file name, SHA-256 of the unpacked file, sizes after the first (which counts the samples)
MNIST_FILES = {
    "train_images": ("train-images-idx3-ubyte", (28, 28),
                     "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db"),
    "train_labels": ("train-labels-idx1-ubyte", (),
                     "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5"),
    "test_images": ("t10k-images-idx3-ubyte", (28, 28),
                    "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7"),
    "test_labels": ("t10k-labels-idx1-ubyte", (),
                    "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2"),
}


class DataError(Exception):
    """A data file is missing or is not what it should be; the message says what to do."""


@dataclass(frozen=True)
class Digits:
    """Images are uint8 [samples, 28, 28], 0 = background; labels are uint8 [samples], 0-9."""

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray


def mnist(folder: str | Path | None = None) -> Digits:
    """MNIST as it came with tgx, or the four idx files in `folder` (plain, .gz or .xz)."""
    arrays = {}
    for field, (name, sizes, sha256) in MNIST_FILES.items():
        path = find(name, HERE / "mnist" if folder is None else Path(folder))
        raw = unpack(path)
        if folder is None and hashlib.sha256(raw).hexdigest() != sha256:
            raise DataError(f"{path} is damaged: its content is not MNIST's {name} (SHA-256 "
                            "differs).\nGet the file again: git checkout examples/data/mnist")
        arrays[field] = parse_idx(raw, path, sizes)
    for split in ("train", "test"):
        images, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"]
        if len(images) != len(labels):
            raise DataError(f"{split}: {len(images)} images but {len(labels)} labels.\n"
                            "Images and labels must come from the same data set.")
        if labels.max() > 9:
            raise DataError(f"{split}: a label is {labels.max()}; expected classes 0 to 9.")
    return Digits(**arrays)


def find(name: str, folder: Path) -> Path:
    """The file `name` in `folder`, packed or not."""
    candidates = [folder / (name + suffix) for suffix in ("", ".gz", ".xz")]
    for path in candidates:
        if path.is_file():
            return path
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder.\n"
                        "Give the folder that holds MNIST's four idx files.")
    raise DataError(f"no {name} in {folder}.\n"
                    f"Expected one of: {', '.join(path.name for path in candidates)}")


def unpack(path: Path, limit: int = LIMIT) -> bytes:
    """A file's content, unpacked if its first bytes say gzip or xz; never more than `limit`."""
    try:
        if path.stat().st_size > limit:
            raise DataError(f"{path} is {path.stat().st_size:,} bytes; at most {limit:,} expected.")
        raw = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from None
    if raw[:2] == b"\x1f\x8b":
        unpacker = zlib.decompressobj(wbits=31)
    elif raw[:6] == b"\xfd7zXZ\x00":
        unpacker = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=LIMIT)
    else:
        return raw
    try:
        content = unpacker.decompress(raw, limit)
    except (zlib.error, lzma.LZMAError) as error:
        raise DataError(f"{path} is damaged and cannot be unpacked ({error}).\n"
                        "Download or copy the file again.") from None
    if not unpacker.eof:
        raise DataError(f"{path} unpacks to more than the {limit:,} bytes expected."
                        if len(content) == limit else
                        f"{path} is truncated: it ends in the middle of the packed data.\n"
                        "Download or copy the file again.")
    return content


def parse_idx(raw: bytes, path: Path, sizes: tuple[int, ...]) -> np.ndarray:
    """The array in an idx file whose sizes after the first must be `sizes`."""
    rank = 1 + len(sizes)
    header = 4 + 4 * rank
    magic, expected = raw[:4].hex(" "), bytes((0, 0, 8, rank)).hex(" ")
    if magic != expected:
        raise DataError(f"{path} does not start like an idx file of {rank} dimension(s): found "
                        f"{magic or 'an empty file'}, expected {expected}.\n"
                        "Are the names of the image and label files swapped?")
    if len(raw) < header:
        raise DataError(f"{path} is truncated: {len(raw)} bytes, its header alone takes {header}.")
    shape = struct.unpack(f">{rank}I", raw[4:header])
    if shape[1:] != sizes or shape[0] == 0:
        raise DataError(f"{path} holds {' x '.join(map(str, shape))}; expected "
                        f"{' x '.join(['samples', *map(str, sizes)])}, at least one sample.")
    promised = header + int(np.prod(shape, dtype=object))
    if len(raw) != promised:
        raise DataError(f"{path} is {len(raw):,} bytes unpacked, but its header promises "
                        f"{promised:,}.\nThe file is cut off or was changed; get it again.")
    return np.frombuffer(raw, np.uint8, offset=header).reshape(shape)


def draw(image: np.ndarray) -> str:
    """A digit as text, two characters a pixel, so that it keeps its proportions."""
    return "\n".join("".join(" .:*#"[int(pixel) // 52] * 2 for pixel in row) for row in image)


def main() -> None:
    parser = argparse.ArgumentParser(description="show what the data files hold")
    parser.add_argument("--data", metavar="DIR", help="idx files, plain, gz or xz (default: ours)")
    try:
        digits = mnist(parser.parse_args().data)
    except DataError as error:
        sys.exit(f"error: {error}")
    for field in MNIST_FILES:
        array = getattr(digits, field)
        print(f"{field:13} {' x '.join(map(str, array.shape)):16} {array.dtype}")
    print(f"the first training image, labelled {digits.train_labels[0]}:")
    print(draw(digits.train_images[0]))


if __name__ == "__main__":
    main()
