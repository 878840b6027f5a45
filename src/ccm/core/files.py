"""Files: written whole or not at all, whoever else reads or writes them; only tensors and JSON are ever read."""

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

from safetensors import SafetensorError

from ccm.core.errors import CCMError, reason

if TYPE_CHECKING:  # only the functions on tensors need torch, and import it: files of other kinds do not wait for it
    from torch import Tensor

_BEGINNING = 100  # bytes of a file's name that its temporary is called by: file systems take 255 at most
_LARGEST = 100_000_000  # bytes of a header that safetensors reads, too
_DEEPEST = 32  # levels of JSON that are read: messages, digests and comparisons recurse over them
_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64", "BOOL": "bool"}
_making: set[tuple[int, int]] = set()  # temporaries of this process, which it has locked
_EXCLUSIVE, _AT_ONCE = fcntl.LOCK_EX, fcntl.LOCK_EX | fcntl.LOCK_NB


class Stated(NamedTuple):
    """What a file says of a tensor that is not read yet; the dtype is torch's, such as "float32"."""

    dtype: str
    shape: tuple[int, ...]


Check = Callable[[dict[str, str], dict[str, Stated]], None]


def as_path(path: object, error: type[CCMError]) -> Path:
    """A path that a caller named.

    Raises:
        error: when it is none, or no file can be called so.
    """
    if not isinstance(path, str | os.PathLike):
        raise error(
            f"{path!r} is of type {type(path).__name__}, not a path; name a file or folder by a string or a Path."
        )
    try:
        if b"\0" not in os.fsencode(path):
            return Path(os.fsdecode(path))
    except UnicodeEncodeError:  # half of a surrogate pair
        pass
    raise error(
        f"{os.fspath(path)!a} holds what no file can be called by, such as a null character; take another name."
    )


@contextmanager
def writing(place: Path, error: type[CCMError], advice: str) -> Iterator[None]:
    """Meanwhile what hinders writing is raised as an error of ours: the place, why it cannot be written, the advice.

    Raises:
        error: that one.
    """
    try:
        yield
    except (OSError, SafetensorError) as cause:
        raise error(f"{place} cannot be written: {reason(cause)}. {advice}") from cause


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a temporary file beside ``path``, flush it to the disk, then put it in place in one move.

    A new file has the mode that the umask gives, a file that is replaced keeps its own. A symbolic link stays: the file
    that it names is replaced.

    Raises:
        OSError: when the folder does not exist or cannot be written, or there is a directory, device or pipe at the
            path; what was there is as it was.
    """
    target = Path(os.path.realpath(path))
    try:
        mode = stat.S_IMODE(check_regular(target).st_mode)
    except FileNotFoundError:
        mode = None
    rights = 0o666 if mode is None else mode | stat.S_IRUSR | stat.S_IWUSR  # never wider than those of the result
    with _part(target, lambda part: os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL, rights)) as part:
        write(part)
        if mode is not None:
            part.chmod(mode)
        _sync(part)
        part.replace(target)
        _sync_folder(target.parent)


def make_atomically(folder: Path, fill: Callable[[Path], object]) -> None:
    """Let ``fill`` write into a temporary folder beside ``folder``, then put it in place in one move.

    Raises:
        OSError: when there is something at the path, or the folder around it cannot be written; nothing is left behind.
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
    """The checksum of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_regular(path: Path) -> os.stat_result:
    """The status of a regular file, or of the one that a link names.

    Raises:
        OSError: when there is none, or a directory, device, pipe or socket instead.
    """
    found = path.stat()
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(f"{path} is a directory, not a file")
    if not stat.S_ISREG(found.st_mode):
        raise OSError(f"{path} is no regular file, but a device, a pipe or a socket")
    return found


# Locks: they end with their process, however it ends -----------------------------------------------------------------


@contextmanager
def locking(folder: Path, *, shared: bool = False) -> Iterator[None]:
    """Meanwhile no other process writes into a folder or, unless ``shared``, reads from it: all of them call this.

    A folder that this process is making, in :func:`make_atomically`, is its own already.
    """
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:  # whoever reads or writes there finds out why
        yield
        return
    try:
        if _inode(handle) not in _making:  # a second lock would wait for the first one for ever
            _lock(handle, fcntl.LOCK_SH if shared else _EXCLUSIVE)
        yield
    finally:
        _release(handle)


@contextmanager
def holding(path: Path) -> Iterator[None]:
    """Meanwhile a file at the path is this process's own; it is deleted in the end.

    Raises:
        BlockingIOError: when it is another's.
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
        _release(handle)  # the one before let go of it just now, and deleted it
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        _release(handle)


def is_held(path: Path) -> bool:
    """Whether a process is :func:`holding` a file."""
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
    """Lock an open file; False where its file system has no locks.

    Raises:
        BlockingIOError: when it is locked, and ``how`` does not wait.
    """
    try:
        fcntl.flock(handle, how)
    except BlockingIOError:
        raise
    except OSError:
        return False
    return True


def _release(handle: int) -> None:
    """Unlock and close; closing alone would leave the lock to a process that was forked meanwhile."""
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
    """What ``make`` makes and opens beside ``target``, deleted in the end where it was not moved away.

    It is locked, and so differs from what killed processes left, which is deleted at first.
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
            _release(handle)  # another process took it for one that was left
        _making.add(made := _inode(handle))
        try:
            yield part
        finally:
            _making.remove(made)
            _delete(part)
            _release(handle)
    except OSError as error:  # where the disk is full, writing names no file
        if error.errno and (error.filename is None or str(error.filename).startswith(begins)):
            raise OSError(error.errno, error.strerror, str(target)) from error
        raise


def _beginning(target: Path) -> str:
    """What temporaries of a target are called by: its name, or whole characters of that. Targets may share it."""
    return os.fsencode(target.name)[:_BEGINNING].decode(errors="ignore")


def _clear(target: Path) -> None:
    """Delete the temporaries of a target that no living process has."""
    for left in target.parent.glob(f".{escape(_beginning(target))}.????????.part"):
        with suppress(OSError):  # another process is faster, or it is not ours to delete
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
    """Flush the names in a folder to the disk, where the file system can do that."""
    with suppress(OSError):
        _sync(folder)


# Tensors and JSON ----------------------------------------------------------------------------------------------------


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file atomically.

    Equal tensors make equal bytes as long as there is at most one key of metadata: several are written in any order.
    """
    from safetensors.torch import save

    contiguous = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    whole = dict(metadata or {})
    write_atomically(path, lambda part: part.write_bytes(save(contiguous, whole)))  # save_file would make a part itself


def load_tensors(path: Path, check: Check = lambda metadata, stated: None) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Copies of the tensors, on the CPU, and metadata of a safetensors file.

    ``check`` is called with the metadata and what the file says of its tensors, before these are read.

    Raises:
        OSError: when there is no such file.
        SafetensorError: when the file is not whole.
        MemoryError: when there is not memory enough.
    """
    from safetensors.torch import load

    with _open(path) as file:  # once: safe_open opens twice, and another file may be at the path by then
        metadata, stated = _read_header(file)
        check(metadata, stated)
        file.seek(0)
        return load(file.read()), metadata


def read_metadata(path: Path) -> dict[str, str]:
    """Metadata of a safetensors file, its tensors unread.

    Raises:
        OSError: when there is no such file.
        SafetensorError: when the file is not whole.
    """
    with _open(path) as file:
        return _read_header(file)[0]


def _open(path: Path) -> BinaryIO:
    check_regular(path)
    return path.open("rb")


def _read_header(file: BinaryIO) -> tuple[dict[str, str], dict[str, Stated]]:
    size = int.from_bytes(file.read(8), "little")
    if file.read(1) != b"{":
        raise SafetensorError("it is not of the format safetensors")
    file.seek(8)
    if size > (most := min(os.fstat(file.fileno()).st_size - 8, _LARGEST)):
        raise SafetensorError(f"its header should be of {size} bytes, and can be of {most} at most")
    try:
        header = parse_json(file.read(size))
        metadata = header.pop("__metadata__", {})
        stated = {name: Stated(_DTYPES.get(x["dtype"], x["dtype"]), tuple(x["shape"])) for name, x in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SafetensorError(f"its header is damaged, {error}") from error
    except MemoryError:
        raise SafetensorError(f"there is not memory enough for its header of {size} bytes") from None
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise SafetensorError("its metadata are no texts")
    return metadata, stated


def save_json(path: Path, value: Any) -> None:
    """Write indented JSON atomically."""
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    write_atomically(path, lambda part: part.write_text(text, encoding="utf-8"))


def read_json(path: Path) -> Any:
    """The value in a JSON file.

    Raises:
        OSError: when there is no such file.
        ValueError: see :func:`parse_json`.
    """
    check_regular(path)
    return parse_json(path.read_bytes())


def parse_json(text: str | bytes) -> Any:
    """A JSON value of at most 32 levels.

    Raises:
        ValueError: when it is none, nested deeper, or has a number of too many digits.
    """
    try:
        value = json.loads(text)
        level = [value]
        for _ in range(_DEEPEST):
            level = [item for held in level for item in _items(held)]
            if not level:
                return value
    except (RecursionError, MemoryError):
        raise ValueError("it is nested too deep, or too large") from None
    raise ValueError(f"it is nested deeper than {_DEEPEST} levels")


def _items(value: Any) -> Any:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


__all__ = [
    "SafetensorError",
    "Stated",
    "as_path",
    "check_regular",
    "holding",
    "is_held",
    "load_tensors",
    "locking",
    "make_atomically",
    "parse_json",
    "read_json",
    "read_metadata",
    "save_json",
    "save_tensors",
    "sha256",
    "write_atomically",
    "writing",
]
