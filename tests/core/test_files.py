"""Files: modes, links, what is refused, what is flushed, what killed processes leave, and who waits for whom."""

from __future__ import annotations

import errno
import multiprocessing
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from helpers import NO_PATHS

from ccm.core import files
from ccm.core.errors import MemoryFileError
from ccm.core.files import (
    SafetensorError,
    as_path,
    holding,
    is_held,
    load_tensors,
    locking,
    make_atomically,
    parse_json,
    save_json,
    save_tensors,
    write_atomically,
)

pytestmark = pytest.mark.usefixtures("one_thread")
FORK = multiprocessing.get_context("fork")


def put(path: Path, text: str = "new") -> None:
    write_atomically(path, lambda part: part.write_text(text))


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def umask() -> Iterator[Callable[[int], None]]:
    before = os.umask(0o022)
    yield lambda mask: os.umask(mask) and None
    os.umask(before)


@pytest.mark.parametrize("named", [None, "{}", "{}/inner", "other"])
@pytest.mark.parametrize("make", [write_atomically, make_atomically])
def test_what_hinders_writing_is_told_of_the_target_not_of_its_temporary(
    tmp_path: Path, make: Callable, named: str | None
) -> None:
    def fail(part: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", named and named.format(part))

    with pytest.raises(OSError, match="No space left on device") as found:
        make(tmp_path / "a", fail)
    assert found.value.filename == ("other" if named == "other" else str(tmp_path / "a"))
    assert found.value.errno == errno.ENOSPC
    with pytest.raises(FileNotFoundError, match=f"^there is no folder {tmp_path / 'none'}$"):
        write_atomically(tmp_path / "none" / "a", Path.touch)


@pytest.mark.parametrize(("mask", "file", "folder"), [(0o077, 0o600, 0o700), (0o002, 0o664, 0o775), (0, 0o666, 0o777)])
def test_what_is_new_has_the_mode_of_the_umask(
    tmp_path: Path, umask: Callable[[int], None], mask: int, file: int, folder: int
) -> None:
    umask(mask)
    put(tmp_path / "a")
    make_atomically(tmp_path / "b", lambda part: put(part / "c"))
    assert (mode(tmp_path / "a"), mode(tmp_path / "b"), mode(tmp_path / "b" / "c")) == (file, folder, file)


@pytest.mark.parametrize("own", [0o600, 0o664, 0o444, 0o640])
def test_a_file_that_is_overwritten_keeps_its_mode_and_is_never_wider_open(tmp_path: Path, own: int) -> None:
    path, seen = tmp_path / "a", []
    path.write_text("old")
    path.chmod(own)

    def write(part: Path) -> None:
        seen.append(mode(part) & 0o077 & ~own)
        part.write_text("new")

    write_atomically(path, write)
    assert (path.read_text(), mode(path), seen) == ("new", own, [0])


@pytest.mark.parametrize("there", [True, False])
def test_a_link_stays_and_what_it_names_is_replaced(tmp_path: Path, there: bool) -> None:
    (tmp_path / "far").mkdir()
    target, link = tmp_path / "far" / "a", tmp_path / "link"
    if there:
        target.write_text("old")
    link.symlink_to(Path("far") / "a")
    put(link)
    assert link.is_symlink()
    assert (target.read_text(), link.read_text()) == ("new", "new")
    assert [path.name for path in target.parent.iterdir()] == ["a"]


def test_what_is_no_regular_file_is_neither_replaced_nor_read(tmp_path: Path) -> None:
    pipe, folder, loop = tmp_path / "pipe", tmp_path / "folder", tmp_path / "loop"
    os.mkfifo(pipe)
    folder.mkdir()
    loop.symlink_to(loop)
    for path in (pipe, folder, loop, Path("/dev/null")):
        for use in (put, load_tensors, files.read_metadata, files.read_json):
            with pytest.raises(OSError, match=path.name):
                use(path)
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "loop", "pipe"]


@pytest.mark.parametrize("folder", [False, True])
def test_all_is_flushed_to_the_disk_around_the_move(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: bool
) -> None:
    """The file before it has its name, the folder around it afterwards."""
    done: list[object] = []

    def fsync(handle: int) -> None:
        done.append(os.fstat(handle).st_ino)

    def noted(move: Callable) -> Callable:
        return lambda *args: (move(*args), done.append("moved"))[0]

    monkeypatch.setattr(os, "fsync", fsync)
    for name in ("rename", "replace"):
        monkeypatch.setattr(Path, name, noted(getattr(Path, name)))
    path = tmp_path / "a"
    if folder:
        make_atomically(path, lambda part: (part / "b").write_text("new"))
        inside = [(path / "b").stat().st_ino, path.stat().st_ino]
    else:
        put(path)
        inside = [path.stat().st_ino]
    assert done == [*inside, "moved", tmp_path.stat().st_ino]


def hang(path: Path, begun: Path) -> None:
    """Save, and never come to an end of it."""

    def write(part: Path) -> None:
        part.write_text("half")
        begun.touch()
        time.sleep(600)

    write_atomically(path, write)


def test_the_next_save_deletes_what_a_killed_one_left_but_not_what_a_living_one_writes(tmp_path: Path) -> None:
    path, beside = tmp_path / "a", tmp_path / ".a.mine.part"
    beside.write_text("not ours")
    savers = []
    for number in range(2):
        savers.append(FORK.Process(target=hang, args=(path, tmp_path / f"begun{number}"), daemon=True))
        savers[-1].start()
        while not (tmp_path / f"begun{number}").exists():
            time.sleep(0.01)
    dead, alive = savers
    os.kill(dead.pid, signal.SIGKILL)
    dead.join()
    assert len([*tmp_path.glob(".a.????????.part")]) == 2
    put(path)
    assert len([*tmp_path.glob(".a.????????.part")]) == 1
    os.kill(alive.pid, signal.SIGKILL)
    alive.join()
    put(path, "newer")
    assert not [*tmp_path.glob(".a.????????.part")]
    assert (path.read_text(), beside.read_text()) == ("newer", "not ours")


def test_a_temporary_that_was_taken_for_a_left_one_before_it_was_locked_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, taken = files._lock, []

    def late(handle: int, how: int) -> bool:
        if not taken:
            taken.extend(tmp_path.iterdir())
            taken[0].unlink()
        return real(handle, how)

    monkeypatch.setattr(files, "_lock", late)
    put(tmp_path / "a")
    assert ((tmp_path / "a").read_text(), len(taken)) == ("new", 1)


def test_a_folder_that_a_killed_process_left_is_deleted_by_the_next(tmp_path: Path) -> None:
    left = tmp_path / ".a.0123abcd.part"
    left.mkdir()
    (left / "b").write_text("half")
    make_atomically(tmp_path / "a", lambda part: (part / "b").write_text("new"))
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("name", ["x" * 255, "\u4f60" * 85, "a" + "\u00e9" * 127, "[*?]" * 63, ".part" * 51])
@pytest.mark.parametrize("folder", [False, True])
def test_every_name_that_a_file_can_have_can_be_saved(tmp_path: Path, name: str, folder: bool) -> None:
    path = tmp_path / name
    try:
        path.touch()
    except OSError as error:
        if error.errno not in (errno.ENAMETOOLONG, errno.EILSEQ, errno.EINVAL):
            raise
        pytest.skip(f"this file system takes no such name: {error.strerror}")
    path.unlink()

    parts: list[Path] = []

    def fill(part: Path) -> None:
        parts.append(part)
        (part / "b" if folder else part).write_text("new")

    make_atomically(path, fill) if folder else write_atomically(path, fill)
    assert (path / "b" if folder else path).read_text() == "new"
    shutil.rmtree(path) if folder else path.unlink()
    parts[0].write_text("left by a process that was killed")
    make_atomically(path, fill) if folder else write_atomically(path, fill)
    assert [left.name for left in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("make", [write_atomically, make_atomically])
def test_a_disk_that_is_full_is_told_with_the_file(tmp_path: Path, make: Callable) -> None:
    def fill(part: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match=rf"No space left on device: '{tmp_path}/a'$"):
        make(tmp_path / "a", fill)
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("name", NO_PATHS)
def test_what_is_no_path_is_an_error_of_the_callers_kind(name: object) -> None:
    with pytest.raises(MemoryFileError, match=r"not a path|cannot be the name of a file"):
        as_path(name, MemoryFileError)


@pytest.mark.parametrize("kind", [str, Path])
def test_a_name_of_bytes_that_are_no_text_is_a_path(tmp_path: Path, kind: Callable[[Path], str | Path]) -> None:
    path = tmp_path / "\udce9"
    assert as_path(kind(path), MemoryFileError) == path


def save_often(path: Path, number: int) -> None:
    for _ in range(40):
        save_tensors(path, {"a": torch.full((1000,), float(number))}, {"kind": str(number)})


def test_savers_and_readers_of_several_processes_neither_crash_nor_mix(tmp_path: Path) -> None:
    path = tmp_path / "a"
    save_tensors(path, {"a": torch.full((1000,), 0.0)}, {"kind": "0"})
    savers = [FORK.Process(target=save_often, args=(path, number), daemon=True) for number in (1, 2, 3)]
    for saver in savers:
        saver.start()
    while any(saver.is_alive() for saver in savers):
        tensors, metadata = load_tensors(path)
        assert {*tensors["a"].tolist()} == {float(metadata["kind"])}
    assert [saver.exitcode for saver in savers] == [0, 0, 0]
    assert [left.name for left in tmp_path.iterdir()] == ["a"]


def test_what_was_loaded_is_a_copy_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a"
    save_tensors(path, {"a": torch.ones(2000)})
    tensors, _ = load_tensors(path)
    path.write_bytes(bytes(path.stat().st_size))  # in place, as cp does
    assert tensors["a"].eq(1).all()
    os.truncate(path, 0)
    assert tensors["a"].eq(1).all()


@pytest.mark.slow
def test_equal_saves_have_equal_bytes_in_every_process(tmp_path: Path) -> None:
    code = (
        "import sys, torch; from pathlib import Path; from ccm.core.tensor_files import write_file\n"
        "tensors = {n: torch.arange(3.0) for n in 'gabcdef'}\n"
        "write_file(Path(sys.argv[1]), 'ccm_memory', tensors, {n: n for n in ('base', 'adapter', 'head')})"
    )
    for seed in (1, 2):
        environment = {**os.environ, "PYTHONHASHSEED": str(seed), "PYTHONPATH": os.pathsep.join(sys.path)}
        subprocess.run([sys.executable, "-c", code, str(tmp_path / str(seed))], env=environment, check=True)
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()


BOMBS = {
    "nesting": "[" * 100_000 + "]" * 100_000,
    "nesting of tables": '{"a":' * 50 + "1" + "}" * 50,
    "digits": "[" + "9" * 100_000 + "]",
    "nothing": "",
    "half": '{"a": ',
    "no text": b"\xff\xfe\x00",
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_json_that_is_none_or_a_bomb_is_a_value_error(bomb: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="."):
        parse_json(BOMBS[bomb])


def test_json_of_some_levels_comes_back(tmp_path: Path) -> None:
    value = {"a": [[{"b": [1, 2.5, None, "\u00e9"]}]]}
    save_json(tmp_path / "a", value)
    assert files.read_json(tmp_path / "a") == value


@pytest.mark.parametrize("size", [2**63 - 1, 2**40, 10**6, 0])
def test_a_header_that_claims_another_size_is_refused(tmp_path: Path, size: int) -> None:
    path = tmp_path / "a"
    path.write_bytes(size.to_bytes(8, "little") + b"{}      ")
    with pytest.raises(SafetensorError):
        load_tensors(path)


def test_a_header_that_is_larger_than_any_is_not_read(tmp_path: Path) -> None:
    path, size = tmp_path / "a", 100_000_001
    path.write_bytes(size.to_bytes(8, "little") + b"{")
    os.truncate(path, 2 * size)  # a hole
    for read in (load_tensors, files.read_metadata):
        with pytest.raises(SafetensorError, match=f"claims {size} bytes; it can have 100000000 at most"):
            read(path)


@pytest.mark.parametrize("name", ["parse_json", "TensorInfo", "_items"])
def test_a_header_that_memory_does_not_hold_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def fail(*_: object) -> None:
        raise MemoryError

    path = tmp_path / "a"
    save_tensors(path, {"a": torch.ones(1)})
    monkeypatch.setattr(files, name, fail)
    for read in (load_tensors, files.read_metadata):
        with pytest.raises(SafetensorError, match=r"not enough memory|too large"):
            read(path)


# Locks ---------------------------------------------------------------------------------------------------------------


def keep(path: Path, begun: Path) -> None:
    with holding(path):
        begun.touch()
        time.sleep(600)


def test_a_held_file_is_another_process_own_until_it_ends(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    assert not is_held(path)
    other = FORK.Process(target=keep, args=(path, tmp_path / "begun"), daemon=True)
    other.start()
    while not (tmp_path / "begun").exists():
        time.sleep(0.01)
    assert is_held(path)
    with pytest.raises(BlockingIOError), holding(path):
        pass
    os.kill(other.pid, signal.SIGKILL)
    other.join()
    assert not is_held(path)
    for _ in range(2):
        with holding(path):
            assert is_held(path)
        assert not path.exists()


def test_a_writer_of_a_folder_waits_for_its_readers_who_do_not_wait_for_each_other(tmp_path: Path) -> None:
    written = tmp_path / "written"

    def write() -> None:
        with locking(tmp_path):
            written.touch()

    writer = FORK.Process(target=write, daemon=True)
    with locking(tmp_path, shared=True):
        with locking(tmp_path, shared=True):
            writer.start()
            time.sleep(0.3)
        assert not written.exists()
    writer.join(30)
    assert written.exists()


def test_where_there_are_no_locks_files_are_written_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(handle: int, how: int) -> None:
        raise OSError(38, "Function not implemented")

    left = tmp_path / ".a.0123abcd.part"
    left.write_text("perhaps alive")
    monkeypatch.setattr(files.fcntl, "flock", unsupported)
    put(tmp_path / "a")
    with locking(tmp_path), holding(tmp_path / ".lock"):
        assert not is_held(tmp_path / ".lock")
    assert sorted(path.name for path in tmp_path.iterdir()) == [left.name, "a"]


def test_what_locks_a_folder_may_fill_one_that_is_being_made(tmp_path: Path) -> None:
    def fill(part: Path) -> None:
        for shared in (False, True):
            with locking(part, shared=shared):
                (part / "file").write_text("whole", encoding="utf-8")

    worker = threading.Thread(target=make_atomically, args=(tmp_path / "folder", fill), daemon=True)
    worker.start()
    worker.join(timeout=30)
    assert (tmp_path / "folder" / "file").read_text(encoding="utf-8") == "whole"
