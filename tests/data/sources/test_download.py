"""Downloads against a server on this machine, and what is asked of the Hub's library."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, ClassVar

import pytest

from ccm.core.errors import DataError
from ccm.data.sources import download as module
from ccm.data.sources.catalogue import File
from ccm.data.sources.download import download

BODY = bytes(range(256)) * 40


class Server(BaseHTTPRequestHandler):
    """Serves ``files``; the answers of ``breaks`` end after so many bytes, one after the other."""

    files: ClassVar[dict[str, bytes]] = {}
    breaks: ClassVar[list[int]] = []
    asked: ClassVar[list[tuple[str, str | None]]] = []

    def do_GET(self) -> None:
        self.asked.append((self.path, self.headers["Range"]))
        body = self.files.get(self.path)
        if body is None:
            self.send_error(404)
            return
        tag = f'"{hashlib.sha256(body).hexdigest()[:8]}"'
        begin = int(self.headers["Range"].removeprefix("bytes=")[:-1]) if self.headers["Range"] else 0
        if self.headers["If-Range"] not in (None, tag):
            begin = 0
        if begin >= len(body):
            self.send_error(416)
            return
        self.send_response(206 if begin else 200)
        self.send_header("ETag", tag)
        self.send_header("Content-Length", str(len(body) - begin))
        self.end_headers()
        self.wfile.write(body[begin:][: self.breaks.pop(0) if self.breaks else None])

    def log_message(self, *args: Any) -> None:
        """Nothing."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(Server, "files", {"/book.txt": BODY})
    monkeypatch.setattr(Server, "breaks", [])
    monkeypatch.setattr(Server, "asked", [])
    running = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    Thread(target=running.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{running.server_port}"
    running.shutdown()
    running.server_close()


def bring(folder: Path, *files: File) -> list[int]:
    """Download; returns what was reported."""
    reports: list[int] = []
    download(files, folder, lambda file: True, reports.append)
    return reports


def test_a_connection_that_breaks_is_taken_up_again(tmp_path: Path, server: str) -> None:
    Server.breaks = [1000, 2000]
    reports = bring(tmp_path, File("a/book.txt", f"{server}/book.txt"))
    assert (tmp_path / "a/book.txt").read_bytes() == BODY
    assert [given for _, given in Server.asked] == [None, "bytes=1000-", "bytes=3000-"]
    assert reports == sorted(reports)
    assert reports[-1] == len(BODY)
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["book.txt"]


def test_a_later_download_goes_on_where_an_earlier_one_broke_off(tmp_path: Path, server: str) -> None:
    file = File("book.txt", f"{server}/book.txt")
    Server.breaks = [1000, 0, 0]
    with pytest.raises(OSError, match=r"broke off after 1,000 of 10,240 bytes"):
        bring(tmp_path, file)
    assert not (tmp_path / "book.txt").exists()
    Server.asked.clear()
    bring(tmp_path, file)
    assert Server.asked == [("/book.txt", "bytes=1000-")]
    assert (tmp_path / "book.txt").read_bytes() == BODY


def test_a_file_that_has_changed_meanwhile_comes_from_its_beginning(tmp_path: Path, server: str) -> None:
    file = File("book.txt", f"{server}/book.txt")
    Server.breaks = [1000, 0, 0]
    with pytest.raises(OSError, match="broke off"):
        bring(tmp_path, file)
    Server.files["/book.txt"] = BODY[::-1]
    bring(tmp_path, file)
    assert (tmp_path / "book.txt").read_bytes() == BODY[::-1]


def test_what_arrived_whole_but_was_not_named_yet_comes_anew(tmp_path: Path, server: str) -> None:
    (tmp_path / "book.txt.part").write_bytes(BODY)
    bring(tmp_path, File("book.txt", f"{server}/book.txt"))
    assert (tmp_path / "book.txt").read_bytes() == BODY
    assert not (tmp_path / "book.txt.part").exists()


@pytest.mark.parametrize("wrong", [{"sha256": "0" * 64}, {"size": 5}])
def test_what_is_not_the_published_file_is_removed(tmp_path: Path, server: str, wrong: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=r"book.txt has .*, not [05]"):
        bring(tmp_path, File("book.txt", f"{server}/book.txt", **wrong))
    assert not [path for path in tmp_path.iterdir() if path.suffix != ".tag"]
    right = File("book.txt", f"{server}/book.txt", size=len(BODY), sha256=hashlib.sha256(BODY).hexdigest())
    bring(tmp_path, right)
    assert (tmp_path / "book.txt").read_bytes() == BODY


def test_a_list_brings_what_it_names_and_is_wanted(tmp_path: Path, server: str) -> None:
    Server.files = {"/list": b"1.txt 2.txt 3.txt 4.txt", "/1.txt": b"one", "/2.txt": b"two", "/3.txt": b"three"}
    listing = File("list", f"{server}/list", lists=lambda text: [File(n, f"{server}/{n}") for n in text.split()])
    assert download([listing], tmp_path, lambda file: file.path != "3.txt", lambda done: None) == ["4.txt"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1.txt", "2.txt", "list"]


def test_what_is_there_is_not_asked_for_again(tmp_path: Path, server: str) -> None:
    (tmp_path / "book.txt").write_bytes(BODY)
    assert bring(tmp_path, File("book.txt", f"{server}/book.txt")) == [len(BODY)]
    assert not Server.asked


def test_a_missing_file_fails_at_once_with_the_servers_reason(tmp_path: Path, server: str) -> None:
    with pytest.raises(OSError, match="404"):
        bring(tmp_path, File("other.txt", f"{server}/other.txt"))


def test_the_hub_is_asked_for_the_files_of_a_pattern(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def hub(repo: str, path: str, *, repo_type: str, revision: str, local_dir: Path, tqdm_class: type) -> str:
        assert (repo, repo_type, revision) == ("who/what", "dataset", "v1")
        with tqdm_class(total=len(BODY), initial=100, desc=path, unit="B") as bar:
            (local_dir / path).write_bytes(BODY)
            bar.update(len(BODY) - 100)
        return str(local_dir / path)

    class Api:
        def list_repo_files(self, repo: str, *, repo_type: str, revision: str) -> list[str]:
            return ["data/train-1.parquet", "data/train-2.parquet", "data/test-1.parquet"]

    monkeypatch.setattr(module, "hf_hub_download", hub)
    monkeypatch.setattr(module, "HfApi", Api)
    reports = bring(tmp_path, File("data/train-*.parquet", "who/what", revision="v1"))
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == ["train-1.parquet", "train-2.parquet"]
    assert reports[-1] == 2 * len(BODY)
    with pytest.raises(DataError, match=r"holds no data/valid-\*.parquet any more"):
        bring(tmp_path, File("data/valid-*.parquet", "who/what"))
