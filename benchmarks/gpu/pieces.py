"""Files in pieces, for ways that carry small ones alone, and whole again.

python -m benchmarks.gpu.pieces cut FILE FOLDER --mib 36      NAME.part-00  NAME.part-01  ...  NAME.sha256
python -m benchmarks.gpu.pieces join FOLDER                   NAME
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path

from ccm.core.errors import ConfigError
from ccm.core.files import sha256, write_atomically

MIB = 36
_DIGEST, _PIECE = ".sha256", ".part-"


def cut(file: Path, folder: Path, mib: int = MIB) -> list[Path]:
    """Write the pieces of a file, of ``mib`` MiB each, and its checksum; returns the pieces."""
    folder.mkdir(parents=True, exist_ok=True)
    pieces: list[Path] = []
    with file.open("rb") as source:
        while held := source.read(mib << 20):
            pieces.append(folder / f"{file.name}{_PIECE}{len(pieces):02}")
            pieces[-1].write_bytes(held)
    (folder / f"{file.name}{_DIGEST}").write_text(sha256(file) + "\n")
    return pieces


def join_all(folder: Path) -> list[Path]:
    """Join what lies in pieces in a folder, beside them, where it is not whole already; returns the whole files.

    Raises:
        ConfigError: when a checksum is absent, or pieces are.
    """
    names = sorted({path.name.partition(_PIECE)[0] for path in folder.glob(f"*{_PIECE}*")})
    return [_join(folder / name) for name in names]


def _join(target: Path) -> Path:
    digest = target.with_name(target.name + _DIGEST)
    pieces = sorted(target.parent.glob(f"{target.name}{_PIECE}*"))
    if not digest.is_file():
        raise ConfigError(f"There is no {digest} beside the {len(pieces)} pieces; carry it along.")
    expected = digest.read_text().strip()

    def write(path: Path) -> None:
        with path.open("wb") as whole:
            for piece in pieces:
                with piece.open("rb") as source:
                    shutil.copyfileobj(source, whole)
        if (found := sha256(path)) != expected:
            raise ConfigError(
                f"The {len(pieces)} pieces of {target} have the checksum {found}, not {expected}: some are absent or "
                "damaged. Carry them again."
            )

    if not (target.is_file() and sha256(target) == expected):
        write_atomically(target, write)
    return target


def main(arguments: Sequence[str] | None = None) -> None:
    """Cut a file, or join what lies in pieces."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    cutting, joining = verbs.add_parser("cut"), verbs.add_parser("join")
    cutting.add_argument("file", type=Path)
    cutting.add_argument("folder", type=Path, help="where the pieces go")
    cutting.add_argument("--mib", type=int, default=MIB, help="of a piece (default %(default)s)")
    joining.add_argument("folder", type=Path, help="where the pieces lie")
    asked = parser.parse_args(arguments)
    made = join_all(asked.folder) if asked.verb == "join" else cut(asked.file, asked.folder, asked.mib)
    print(*made, sep="\n")


if __name__ == "__main__":
    main()
