"""Memories that clients keep."""

from __future__ import annotations

from pathlib import Path

import pytest

from ccm.core.errors import ConfigError
from ccm.serving.errors import RequestError
from ccm.serving.sealing import LARGEST, Seal

ANNA, BOB = b"a" * 32, b"b" * 32


def test_what_was_sealed_opens_for_its_owner_and_origin_alone(tmp_path: Path) -> None:
    seal, again, other = (Seal(tmp_path / "secret", origin) for origin in ("model", "model", "other"))
    sealed = seal.seal(b"memory", ANNA)
    assert again.unseal(sealed, ANNA) == ("", b"memory")
    assert seal.unseal(seal.seal(b"memory", ANNA, "Be kind."), ANNA) == ("Be kind.", b"memory")
    assert "memory" not in sealed
    assert seal.seal(b"memory", ANNA) != sealed
    for one, owner in ((seal, BOB), (other, ANNA), (Seal(None, "model"), ANNA)):
        with pytest.raises(RequestError, match="cannot be opened"):
            one.unseal(sealed, owner)


@pytest.mark.parametrize(
    "change", [lambda s: "", lambda s: s[:-8], lambda s: s[:20] + "AAAA" + s[24:], lambda s: "?" + s]
)
def test_what_was_changed_does_not_open(change) -> None:
    seal = Seal(None, "model")
    with pytest.raises(RequestError, match="cannot be opened"):
        seal.unseal(change(seal.seal(b"memory" * 10, ANNA)), ANNA)


def test_a_memory_beyond_the_limit_is_refused_with_what_to_do() -> None:
    with pytest.raises(RequestError, match="previous_response_id"):
        Seal(None, "model").seal(bytes(LARGEST), ANNA)


def test_a_secret_that_others_read_or_that_is_none_is_refused(tmp_path: Path) -> None:
    Seal(tmp_path / "secret", "model")
    (tmp_path / "secret").chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        Seal(tmp_path / "secret", "model")
    (tmp_path / "short").write_text("abcd")
    (tmp_path / "short").chmod(0o600)
    with pytest.raises(ConfigError, match="holds 2 bytes"):
        Seal(tmp_path / "short", "model")
    (tmp_path / "odd").write_text("no hex")
    (tmp_path / "odd").chmod(0o600)
    with pytest.raises(ConfigError, match="cannot be read or made"):
        Seal(tmp_path / "odd", "model")
