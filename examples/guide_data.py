"""The guide's data sets, as NumPy arrays: one small loader that every example shares.

    python examples/guide_data.py                 # MNIST: what is here, one digit in the terminal
    python examples/guide_data.py cifar10         # downloads it to the cache (once), shows it
    python examples/guide_data.py --data DIR      # the same for files of your own

MNIST and Iris come with tgx. Fashion-MNIST and CIFAR-10 are downloaded when they are first asked
for, into a cache; a download that broke off goes on where it stopped. MNIST and Fashion-MNIST are
four *idx* files, a format that fits in three lines:

    bytes 0-3    0, 0, the element type (8 = unsigned byte), the number of dimensions n
    then         n sizes, each a big-endian 32-bit integer
    then         the elements, last dimension fastest

CIFAR-10 is six files of records, each one label and 3 x 32 x 32 bytes (red, green, blue), or six
Python pickles of the same. Iris is a table of 150 lines.

Nothing here trusts a file: a header is checked before its sizes are used, unpacking stops at
`LIMIT`, what came with tgx or from the network must match its SHA-256, a pickle is read as the list
of instructions it is, and none of it run, and every complaint says what was found, what was
expected and what to do.
"""

import argparse
import csv
import functools
import gzip
import hashlib
import http.client
import io
import lzma
import os
import pickletools
import struct
import sys
import tarfile
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent / "data"
SMALL = 2**20  # bytes of a table
LIMIT = 256 * 2**20  # bytes one file may unpack to; CIFAR-10's archive is 184 million

# field: file name, sizes after the first (which counts the samples), SHA-256 of the unpacked file
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
IRIS_SHA256 = "9cc1c345c71bcc9b486b74cbf6063fa66f4bb5e0f603a4b3c3471ec2e5e8e355"

FASHION_CLASSES = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker",
                   "bag", "ankle boot")
CIFAR_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship",
                 "truck")
IRIS_CLASSES = ("setosa", "versicolor", "virginica")


class DataError(Exception):
    """A data file is missing or is not what it should be; the message says what to do."""


@dataclass(frozen=True)
class Images:
    """Pictures are uint8 [samples, 28, 28] or [samples, 3, 32, 32]; labels are uint8 [samples]."""

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    classes: tuple[str, ...] = tuple("0123456789")


@dataclass(frozen=True)
class Table:
    """One row a sample, one column a feature, float32; labels are uint8 [samples]."""

    features: np.ndarray
    labels: np.ndarray
    columns: tuple[str, ...]
    classes: tuple[str, ...]


# ---- the four data sets --------------------------------------------------------------------------

def mnist(folder: str | Path | None = None) -> Images:
    """MNIST as it came with tgx, or the four idx files in `folder` (plain, .gz or .xz)."""
    return our_mnist(HERE) if folder is None else idx_images(
        {field: find(name, Path(folder)) for field, (name, _, _) in MNIST_FILES.items()})


@functools.cache  # unpacking takes most of a second, and a lesson may ask several times
def our_mnist(here: Path) -> Images:
    paths = {field: find(name, here / "mnist") for field, (name, _, _) in MNIST_FILES.items()}
    return idx_images(paths, check=True)


def fashion_mnist(folder: str | Path | None = None) -> Images:
    """Zalando's clothes, made to replace MNIST: same files, same sizes, harder."""
    paths = {field: find(name, Path(folder)) if folder else fetch(FASHION[field], "fashion-mnist")
             for field, (name, _, _) in MNIST_FILES.items()}
    return idx_images(paths, FASHION_CLASSES)


def cifar10(folder: str | Path | None = None) -> Images:
    """CIFAR-10, downloaded; or from `folder`: the official archive, or what was in it, in the
    binary or the Python format."""
    names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    files = cifar_files(names, Path(folder) if folder else fetch(CIFAR10, "cifar10").parent)
    batches = [cifar_pickle(raw, source) if source.suffix != ".bin" else cifar_records(raw, source)
               for source, raw in files]
    images, labels = (list(parts) for parts in zip(*batches, strict=True))
    return Images(np.concatenate(images[:5]), np.concatenate(labels[:5]), images[5], labels[5],
                  CIFAR_CLASSES)


def iris(folder: str | Path | None = None) -> Table:
    """Fisher's irises (1936), as R has them; UCI's copy has errors in its lines 35 and 38."""
    path = (HERE / "iris" if folder is None else Path(folder)) / "iris.csv"
    raw = unpack(path, SMALL)
    if folder is None and hashlib.sha256(raw).hexdigest() != IRIS_SHA256:
        raise DataError(f"{path} is damaged (SHA-256 differs).\n"
                        "Get the file again: git checkout examples/data/iris")
    try:
        columns, *rows = csv.reader(io.StringIO(raw.decode()))
        numbers = [[float(cell) for cell in row[:4]] for row in rows]
        features = np.array(numbers, np.float64).reshape(-1, 4)
        if not len(rows) or len(columns) < 4 or not (abs(features) < 1e6).all():
            raise ValueError("no rows, no four columns, or a number of a million or more")
        return Table(features.astype(np.float32),
                     np.array([IRIS_CLASSES.index(row[4]) for row in rows], np.uint8),
                     tuple(columns[:4]), IRIS_CLASSES)
    except (ValueError, IndexError, csv.Error) as error:
        raise DataError(f"{path} is not a table of four numbers and a species a line "
                        f"({str(error)[:200]}).") from None


SETS: dict[str, Callable[..., Images | Table]] = {
    "mnist": mnist, "fashion-mnist": fashion_mnist, "cifar10": cifar10, "iris": iris}


def load(name: str, folder: str | Path | None = None) -> Images | Table:
    """A data set by its name."""
    if name not in SETS:
        raise DataError(f"no data set {name}; there are {', '.join(SETS)}.")
    return SETS[name](folder)


def at_hand(name: str) -> bool:
    """Can it be loaded without a download?"""
    needed = {"fashion-mnist": ("fashion-mnist", [*FASHION.values()]),
              "cifar10": ("cifar10", [CIFAR10])}
    folder, remotes = needed.get(name, ("", []))
    return all((cache() / folder / remote.name).is_file() for remote in remotes)


# ---- idx files: MNIST and Fashion-MNIST ----------------------------------------------------------

def idx_images(paths: Mapping[str, Path], classes: tuple[str, ...] = Images.classes,
               check: bool = False) -> Images:
    """The four files as arrays; `check` compares them with MNIST's."""
    arrays = {}
    for field, (name, sizes, sha256) in MNIST_FILES.items():
        path = paths[field]
        raw = unpack(path)
        if check and hashlib.sha256(raw).hexdigest() != sha256:
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
    return Images(**arrays, classes=classes)


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


# ---- CIFAR-10 ----------------------------------------------------------------------------------

def cifar_files(names: list[str], folder: Path) -> list[tuple[Path, bytes]]:
    """Each batch's content and where it was: NAME.bin or NAME, in the folder, the archive's own
    folder within it, or the archive."""
    for home in (folder, folder / "cifar-10-batches-bin", folder / "cifar-10-batches-py"):
        for suffix in (".bin", ""):
            paths = [home / (name + suffix) for name in names]
            if any(path.is_file() for path in paths):
                return [(path, unpack(path)) for path in paths]  # which complains of a missing one
    for archive in (folder / "cifar-10-binary.tar.gz", folder / "cifar-10-python.tar.gz"):
        if archive.is_file():
            found = untar(archive, {name + suffix for name in names for suffix in (".bin", "")})
            if missing := [name for name in names if not found.keys() & {name, name + ".bin"}]:
                raise DataError(f"{archive} has no {missing[0]}.\nDownload it again.")
            return [next((archive / n, found[n]) for n in (name + ".bin", name) if n in found)
                    for name in names]
    raise DataError(f"no data_batch_1.bin or data_batch_1 in {folder}.\nGive the folder that holds "
                    "CIFAR-10's six batches or its archive, in the binary or the Python format.")


def untar(archive: Path, names: set[str]) -> dict[str, bytes]:
    """The files of those names in an archive, whatever folder they are in; nothing is written."""
    found: dict[str, bytes] = {}
    total = 0
    try:
        with gzip.open(archive) as packed, tarfile.open(fileobj=_Limited(packed), mode="r|") as tar:
            for member in tar:
                total += member.size  # skipping a file unpacks it, too
                if total > LIMIT:
                    raise DataError(f"{archive} unpacks to more than the {LIMIT:,} bytes expected.")
                name = member.name.rpartition("/")[2]
                if name in names and member.isfile() and (file := tar.extractfile(member)):
                    found[name] = file.read()
    except (tarfile.TarError, EOFError, OSError, zlib.error, ValueError, OverflowError) as error:
        raise DataError(f"{archive} is damaged or not a .tar.gz ({error}).\n"
                        "Download or copy the file again.") from None
    return found


class _Limited:
    """A file that ends in an error where more than `LIMIT` is read of it, a header of an archive,
    too: it may say that it is a gigabyte long."""

    def __init__(self, file: gzip.GzipFile) -> None:
        self.file, self.left = file, LIMIT

    def read(self, size: int) -> bytes:
        if size > self.left:
            raise ValueError(f"more than the {LIMIT:,} bytes expected")
        piece = self.file.read(size)
        self.left -= len(piece)
        return piece


def cifar_records(raw: bytes, source: Path) -> tuple[np.ndarray, np.ndarray]:
    """The binary format: records of one label and 3,072 colours, all red ones first."""
    if not raw or len(raw) % 3073:
        raise DataError(f"{source} is {len(raw):,} bytes; expected records of 3,073.\n"
                        "The file is cut off or was changed; get it again.")
    records = np.frombuffer(raw, np.uint8).reshape(-1, 3073)
    return records[:, 1:].reshape(-1, 3, 32, 32), cifar_labels(records[:, 0], source)


def cifar_labels(labels: np.ndarray, source: Path) -> np.ndarray:
    if labels.max() > 9:
        raise DataError(f"{source}: a label is {labels.max()}; expected classes 0 to 9.")
    return labels


class _Named:
    """What a pickle would make by calling something: only its name, and what it would be given."""

    def __init__(self, name: str, given: object = ()) -> None:
        self.name, self.given, self.state = name, given, None


def read_pickle(raw: bytes) -> object:
    """What is in a pickle, for data alone. It is a program for a small machine; this one knows only
    the instructions that numbers, texts, lists and dictionaries need, and calls nothing: a class or
    function stays a name. (`pickle.load` would call whatever the file says.)"""
    stack: list = []
    marks: list[int] = []
    memo: dict[int, object] = {}

    def since_mark() -> list:
        at = marks.pop()
        items = stack[at:]
        del stack[at:]
        return items

    for code, value, _ in pickletools.genops(raw):
        name = code.name
        if name in ("PROTO", "FRAME"):
            continue
        if name == "STOP":
            return stack.pop()
        if name == "MARK":
            marks.append(len(stack))
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            memo[value] = stack[-1]
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo[value])
        elif name in ("NONE", "NEWTRUE", "NEWFALSE"):
            stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[name])
        elif name in ("INT", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "STRING",
                      "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINUNICODE",
                      "SHORT_BINUNICODE", "UNICODE"):
            # the texts of Python 2 are bytes; pickletools reads them as latin-1
            stack.append(value.encode("latin-1") if "STRING" in name else value)
        elif name in ("EMPTY_LIST", "EMPTY_DICT", "EMPTY_TUPLE"):
            stack.append({"EMPTY_LIST": [], "EMPTY_DICT": {}, "EMPTY_TUPLE": ()}[name])
        elif name in ("LIST", "TUPLE"):
            items = since_mark()
            stack.append(items if name == "LIST" else tuple(items))
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            items = stack[-int(name[-1]):]
            del stack[-int(name[-1]):]
            stack.append(tuple(items))
        elif name in ("APPEND", "APPENDS"):
            items = since_mark() if name == "APPENDS" else [stack.pop()]
            stack[-1].extend(items)
        elif name in ("SETITEM", "SETITEMS", "DICT"):
            items = [stack.pop(-2), stack.pop()] if name == "SETITEM" else since_mark()
            if name == "DICT":
                stack.append({})
            if not all(isinstance(key, (str, bytes, int)) for key in items[::2]):
                raise ValueError("a dictionary of other keys than words and numbers")
            stack[-1].update(zip(items[::2], items[1::2], strict=True))
        elif name == "GLOBAL":
            stack.append(_Named(value.replace(" ", ".")))
        elif name == "STACK_GLOBAL":
            last, module = stack.pop(), stack.pop()
            stack.append(_Named(f"{module}.{last}"))
        elif name == "REDUCE":
            given, called = stack.pop(), stack.pop()
            if called.name == "_codecs.encode":  # how Python 3 writes bytes for Python 2
                stack.append(given[0].encode("latin-1"))
            else:
                stack.append(_Named(called.name, given))
        elif name == "BUILD":
            state = stack.pop()
            stack[-1].state = state
        else:
            raise ValueError(f"a pickle of data does not need {name}")
    raise ValueError("it does not end")


def cifar_pickle(raw: bytes, source: Path) -> tuple[np.ndarray, np.ndarray]:
    """The Python format: a dictionary with b"data", an array [samples, 3072], and b"labels"."""
    try:
        batch = read_pickle(raw)
        data = batch.get(b"data", batch.get("data"))
        labels = batch.get(b"labels", batch.get("labels"))
        # what NumPy pickles of an array: version, shape, dtype, is it in Fortran's order, bytes
        _, shape, _, fortran, content = data.state
        pixels = np.frombuffer(content, np.uint8).reshape(shape, order="F" if fortran else "C")
        images = np.ascontiguousarray(pixels).reshape(-1, 3, 32, 32)
        if not all(type(label) is int for label in labels):
            raise ValueError("labels that are no whole numbers")
        numbers = np.array(labels, np.uint8)
    except Exception as error:  # a pickle can be broken in every way there is
        raise DataError(f"{source} is not a batch of CIFAR-10 in the Python format "
                        f"({type(error).__name__}: {str(error)[:200]}).\nGet the file again."
                        ) from None
    if not len(images) == numbers.size > 0:
        raise DataError(f"{source}: {len(images)} images but {numbers.size} labels.")
    return images, cifar_labels(numbers, source)


# ---- downloads -----------------------------------------------------------------------------------

@dataclass(frozen=True)
class Remote:
    """A file on the network, and how it is recognised. Sizes and sums: tensorflow_datasets'
    url_checksums."""

    url: str
    size: int
    sha256: str

    @property
    def name(self) -> str:
        return self.url.rpartition("/")[2]


FASHION = {field: Remote("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
                         f"{MNIST_FILES[field][0]}.gz", size, sha256)
           for field, size, sha256 in (
    ("train_images", 26421880, "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84"),
    ("train_labels", 29515, "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845"),
    ("test_images", 4422102, "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073"),
    ("test_labels", 5148, "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5"))}
CIFAR10 = Remote("https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz", 170052171,
                 "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd")


def cache() -> Path:
    """Where downloads are kept: $XDG_CACHE_HOME or ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tgx" / "datasets"


def fetch(remote: Remote, folder: str) -> Path:
    """The file in the cache's `folder`; downloaded if it is not there yet."""
    path = cache() / folder / remote.name
    by_hand = f"Or put it there by hand: download {remote.url}\nand save it as {path}"
    if path.is_file():
        if problem := unlike(path, remote):
            raise DataError(f"{path} is not the file it should be: {problem}.\n"
                            f"Delete it, and it is downloaded again. {by_hand}")
        return path
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        download(remote, part)
    except (OSError, http.client.HTTPException) as error:  # URLError and time-outs are OSErrors
        done = part.stat().st_size if part.is_file() else 0
        reason = getattr(error, "reason", None) or error
        raise DataError(f"cannot download {remote.url} ({reason}); {done:,} of {remote.size:,} "
                        f"bytes are here.\nRun this again to go on from there. {by_hand}") from None
    if problem := unlike(part, remote):
        part.unlink()
        raise DataError(f"what came from {remote.url} is not the file it should be: {problem}.\n"
                        f"It was deleted. {by_hand}")
    part.replace(path)
    return path


def unlike(path: Path, remote: Remote) -> str:
    """What is wrong with a file that should be `remote`; "" if nothing."""
    if (size := path.stat().st_size) != remote.size:
        return f"{size:,} bytes, not {remote.size:,}"
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    return "" if found == remote.sha256 else f"SHA-256 {found}, not {remote.sha256}"


def download(remote: Remote, part: Path) -> None:
    """Append to `part` until it has all the bytes; from the start, if the server cannot go on."""
    from guide_report import progress_bar
    from rich.console import Console

    done = part.stat().st_size if part.is_file() else 0
    if done >= remote.size:
        return
    request = urllib.request.Request(remote.url)
    if done:
        request.add_header("Range", f"bytes={done}-")
    with urllib.request.urlopen(request, timeout=30) as answer, \
            progress_bar(Console(stderr=True)) as bar:
        if answer.status != 206:  # 206 = partial content: the server goes on from there
            done = 0
        task = bar.add_task("downloading", total=remote.size, completed=done,
                            now=remote.name)
        with part.open("ab" if done else "wb") as file:
            while done < remote.size:
                piece = answer.read(min(2**18, remote.size - done))
                if not piece:
                    raise ConnectionError("the connection broke off")
                file.write(piece)
                done += len(piece)
                bar.update(task, completed=done)


# ---- to look at ----------------------------------------------------------------------------------

def draw(image: np.ndarray) -> str:
    """A digit as text, two characters a pixel, so that it keeps its proportions."""
    return "\n".join("".join(" .:*#"[int(pixel) // 52] * 2 for pixel in row) for row in image)


def main() -> None:
    parser = argparse.ArgumentParser(description="show what the data files hold")
    parser.add_argument("name", nargs="?", default="mnist", help=f"one of {', '.join(SETS)}")
    parser.add_argument("--data", metavar="DIR", help="files of your own (default: ours)")
    args = parser.parse_args()
    try:
        data = load(args.name, args.data)
    except DataError as error:
        sys.exit(f"error: {error}")
    for field, array in vars(data).items():
        if isinstance(array, np.ndarray):
            print(f"{field:13} {' x '.join(map(str, array.shape)):16} {array.dtype}")
    if isinstance(data, Table):
        print(f"the first row, {data.classes[data.labels[0]]}:")
        print(", ".join(f"{name} {value:g}" for name, value
                        in zip(data.columns, data.features[0], strict=True)))
        return
    image = data.train_images[0]
    print(f"the first training image, labelled {data.classes[data.train_labels[0]]}:")
    print(draw(image if image.ndim == 2 else image.mean(0)))


if __name__ == "__main__":
    main()
