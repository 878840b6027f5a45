"""Files that are written whole or not at all, also beside other processes. Only tensors and JSON are ever read."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

from safetensors import SafetensorError as SafetensorError  # load_tensors raises it: callers import it from here

from ccm.core.errors import CCMError, reason

if TYPE_CHECKING:  # only the functions for tensors import torch, when they are called: it takes seconds
    from torch import Tensor

FORMAT_VERSION = 2  # of the files of the package; 1 had no digest
_BEGINNING = 100  # bytes of a file's name that the name of its temporary repeats: file systems allow 255 in all
_LARGEST = 100_000_000  # bytes of a header; safetensors has the same limit
_DEEPEST = 32  # levels of JSON: messages, digests and comparisons recurse over them
_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64", "BOOL": "bool"}
_making: set[tuple[int, int]] = set()  # device and inode of the temporaries that this process has locked
_EXCLUSIVE, _AT_ONCE = fcntl.LOCK_EX, fcntl.LOCK_EX | fcntl.LOCK_NB


class TensorInfo(NamedTuple):
    """What the header of a file says about a tensor; the dtype is torch's name, such as "float32"."""

    dtype: str
    shape: tuple[int, ...]


Check = Callable[[dict[str, str], dict[str, TensorInfo]], None]


def as_path(path: object, error: type[CCMError]) -> Path:
    """The path that a caller gave, as a Path.

    Raises:
        error: when it is not a path, or no file can have such a name.
    """
    if not isinstance(path, str | os.PathLike):
        raise error(f"{path!r} is of type {type(path).__name__}, not a path; give a string or a Path.")
    try:
        if b"\0" not in os.fsencode(path):
            return Path(os.fsdecode(path))
    except UnicodeEncodeError:  # half of a surrogate pair
        pass
    raise error(
        f"{os.fspath(path)!a} cannot be the name of a file: it holds a null character or half of a surrogate pair."
    )


@contextmanager
def writing(place: Path, error: type[CCMError], advice: str) -> Iterator[None]:
    """A block in which errors of writing become an error of ours.

    Raises:
        error: with the place, the reason, and the advice.
    """
    try:
        yield
    except (OSError, SafetensorError) as cause:
        raise error(f"{place} cannot be written: {reason(cause)}. {advice}") from cause


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a temporary file beside ``path``, flush it to the disk, and move it into place.

    A new file gets the mode of the umask; a replaced file keeps its own. A symbolic link stays, and the file that it
    points to is replaced.

    Raises:
        OSError: when the folder does not exist or cannot be written, or a directory, device or pipe is at the path. The
            old file then stays.
    """
    target = Path(os.path.realpath(path))
    try:
        mode = stat.S_IMODE(check_regular(target).st_mode)
    except FileNotFoundError:
        mode = None
    rights = 0o666 if mode is None else mode | stat.S_IRUSR | stat.S_IWUSR  # never wider than the final mode
    with _part(target, lambda part: os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL, rights)) as part:
        write(part)
        if mode is not None:
            part.chmod(mode)
        _sync(part)
        part.replace(target)
        _sync_folder(target.parent)


def make_atomically(folder: Path, fill: Callable[[Path], object]) -> None:
    """Let ``fill`` write into a temporary folder beside ``folder``, and move it into place.

    Raises:
        OSError: when something is at the path, or the parent folder cannot be written. Nothing is left behind.
    """

    def make(part: Path) -> int:
        part.mkdir()
        return os.open(part, os.O_RDONLY)

    folder.parent.mkdir(parents=True, exist_ok=True)
    with _part(folder, make) as part:
        fill(part)
        for path in part.rglob("*"):
            _sync_folder(path) if path.is_dir() else _sync(path)
        _sync_folder(part)
        part.rename(folder)
        _sync_folder(folder.parent)


def sha256(path: Path) -> str:
    """The SHA-256 checksum of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_regular(path: Path) -> os.stat_result:
    """The status of a regular file; links are followed.

    Raises:
        OSError: when there is none, or a directory, device, pipe or socket is at the path.
    """
    found = path.stat()
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(f"{path} is a directory, not a file")
    if not stat.S_ISREG(found.st_mode):
        raise OSError(f"{path} is no regular file, but a device, a pipe or a socket")
    return found


@contextmanager
def locking(folder: Path, *, shared: bool = False) -> Iterator[None]:
    """Lock a folder for writing, or for reading if ``shared``. It works between processes that all call this.

    A lock ends with its process. A folder that :func:`make_atomically` is making here is locked already.
    """
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:  # the caller's own read or write will raise it
        yield
        return
    try:
        if _inode(handle) not in _making:  # a second lock would wait for the first for ever
            _lock(handle, fcntl.LOCK_SH if shared else _EXCLUSIVE)
        yield
    finally:
        _release(handle)


@contextmanager
def holding(path: Path) -> Iterator[None]:
    """Own a lock file; it is deleted at the end of the block.

    Raises:
        BlockingIOError: when another process owns it.
        OSError: when it cannot be made.
    """
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _lock(handle, _AT_ONCE)
        except BlockingIOError:
            _release(handle)
            raise
        if _is_at(path, handle):
            break
        _release(handle)  # its last owner has just deleted it
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        _release(handle)


def is_held(path: Path) -> bool:
    """Whether any process owns a lock file, by :func:`holding`."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        return False
    try:
        _lock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        _release(handle)
    return False


def _lock(handle: int, how: int) -> bool:
    """Lock an open file; returns False if its file system has no locks.

    Raises:
        BlockingIOError: when another process has locked it and ``how`` does not wait.
    """
    try:
        fcntl.flock(handle, how)
    except BlockingIOError:
        raise
    except OSError:
        return False
    return True


def _release(handle: int) -> None:
    """Unlock and close a file. Closing alone would leave the lock to processes that were forked meanwhile."""
    with suppress(OSError):
        fcntl.flock(handle, fcntl.LOCK_UN)
    os.close(handle)


def _inode(handle: int) -> tuple[int, int]:
    found = os.fstat(handle)
    return found.st_dev, found.st_ino


def _is_at(path: Path, handle: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(handle))
    except FileNotFoundError:
        return False


@contextmanager
def _part(target: Path, make: Callable[[Path], int]) -> Iterator[Path]:
    """A temporary beside ``target`` that ``make`` creates and opens; it is deleted at the end unless it was moved.

    Its lock tells it from the temporaries of killed processes, which are deleted first.
    """
    if not target.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {target.parent}")
    _clear(target)
    begins = str(target.with_name(f".{_beginning(target)}."))
    try:
        while True:
            part = Path(f"{begins}{secrets.token_hex(4)}.part")
            handle = make(part)
            _lock(handle, _EXCLUSIVE)
            if _is_at(part, handle):
                break
            _release(handle)  # another process deleted it before it was locked
        _making.add(made := _inode(handle))
        try:
            yield part
        finally:
            _making.remove(made)
            _delete(part)
            _release(handle)
    except OSError as error:  # on a full disk, the error of writing names no file
        if error.errno and (error.filename is None or str(error.filename).startswith(begins)):
            raise OSError(error.errno, error.strerror, str(target)) from error
        raise


def _beginning(target: Path) -> str:
    """The part of a target's name, in whole characters, that its temporaries repeat. Several targets may share it."""
    return os.fsencode(target.name)[:_BEGINNING].decode(errors="ignore")


def _clear(target: Path) -> None:
    """Delete the temporaries of a target that no living process has locked."""
    for left in target.parent.glob(f".{escape(_beginning(target))}.????????.part"):
        with suppress(OSError):  # another process was faster, or owns it
            handle = os.open(left, os.O_NOFOLLOW | (os.O_RDONLY if left.is_dir() else os.O_RDWR))
            try:
                if _lock(handle, _AT_ONCE):
                    _delete(left)
            finally:
                _release(handle)


def _delete(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sync_folder(folder: Path) -> None:
    """Flush the names in a folder to the disk, if the file system can do that."""
    with suppress(OSError):
        _sync(folder)


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file atomically.

    Equal tensors give equal bytes if ``metadata`` has at most one key: safetensors writes several in any order.

    Raises:
        OSError: see :func:`write_atomically`.
    """
    from safetensors.torch import save

    contiguous = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    whole = dict(metadata or {})
    write_atomically(path, lambda part: part.write_bytes(save(contiguous, whole)))  # save_file makes its own


def load_tensors(path: Path, check: Check = lambda metadata, infos: None) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a safetensors file: its tensors, as copies on the CPU, and its metadata.

    ``check`` sees the metadata and the facts of every tensor before any tensor is read.

    Raises:
        OSError: when there is no such file.
        SafetensorError: when the file is damaged.
        MemoryError: when the tensors do not fit into memory.
    """
    from safetensors.torch import load

    with _open(path) as file:  # safe_open would open it twice, and another file may be at the path by then
        metadata, infos = _read_header(file)
        check(metadata, infos)
        file.seek(0)
        return load(file.read()), metadata


def read_metadata(path: Path) -> dict[str, str]:
    """Read the metadata of a safetensors file without its tensors.

    Raises:
        OSError: when there is no such file.
        SafetensorError: when the header is damaged.
    """
    with _open(path) as file:
        return _read_header(file)[0]


def _open(path: Path) -> BinaryIO:
    check_regular(path)
    return path.open("rb")


def _read_header(file: BinaryIO) -> tuple[dict[str, str], dict[str, TensorInfo]]:
    size = int.from_bytes(file.read(8), "little")
    if file.read(1) != b"{":
        raise SafetensorError("it is not of the format safetensors")
    file.seek(8)
    if size > (most := min(os.fstat(file.fileno()).st_size - 8, _LARGEST)):
        raise SafetensorError(f"its header claims {size} bytes; it can have {most} at most")
    try:
        header = parse_json(file.read(size))
        metadata = header.pop("__metadata__", {})
        infos = {n: TensorInfo(_DTYPES.get(x["dtype"], x["dtype"]), tuple(x["shape"])) for n, x in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SafetensorError(f"its header is damaged: {error}") from error
    except MemoryError:
        raise SafetensorError(f"there is not enough memory for its header of {size} bytes") from None
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise SafetensorError("its metadata holds values that are no strings")
    return metadata, infos


def save_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON, atomically."""
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    write_atomically(path, lambda part: part.write_text(text, encoding="utf-8"))


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        OSError: when there is no such file.
        ValueError: see :func:`parse_json`.
    """
    check_regular(path)
    return parse_json(path.read_bytes())


def parse_json(text: str | bytes) -> Any:
    """Parse JSON of at most 32 levels.

    Raises:
        ValueError: when it is no JSON, is nested deeper, or has a number with too many digits.
    """
    try:
        value = json.loads(text)
        level = [value]
        for _ in range(_DEEPEST):
            level = [item for outer in level for item in _items(outer)]
            if not level:
                return value
    except (RecursionError, MemoryError):
        raise ValueError("it is nested too deeply, or too large") from None
    raise ValueError(f"it is nested deeper than {_DEEPEST} levels")


def _items(value: Any) -> Any:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def check_version(version: Any, where: str | Path, error: type[CCMError]) -> None:
    """Refuse a format version that this package cannot read.

    Raises:
        error: with the version.
    """
    known = type(version) is int and version >= 1
    if not known or version > FORMAT_VERSION:
        newer = " It was written by a newer one: update ccm." if known else ""
        raise error(f"{where} has format version {version}; this ccm reads versions 1 to {FORMAT_VERSION}.{newer}")
