"""The Hub's reasons, and what to do, in every error about a repository."""

from __future__ import annotations

import re
from typing import Any
from unittest.mock import MagicMock

import pytest
from huggingface_hub import constants
from huggingface_hub.errors import (
    GatedRepoError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from transformers import AutoTokenizer, PretrainedConfig

from ccm.core import adapter_folders
from ccm.core.errors import AdapterError, ConfigError
from ccm.core.hub import why
from ccm.models import load as loading

GATED = (
    "Access to model org/model is restricted and you are not in the authorized list. Visit the page to ask for access."
)


def answered(kind: type, message: str = "403 Client Error.\n\nCannot access it.", server: str | None = None) -> Any:
    """An error with which the Hub answers."""
    return kind(message, response=MagicMock(headers={}), server_message=server)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (
            answered(GatedRepoError, server=GATED),
            rf"^{GATED} Ask for access at https://huggingface.co/org/model, .*hf auth login",
        ),
        (answered(RepositoryNotFoundError), r"^403 Client Error. Check the name at .*org/model; if it is private"),
        (answered(RevisionNotFoundError), "org/model/tree/main lists its branches"),
        (
            LocalEntryNotFoundError("To enable look-ups online, set 'local_files_only' to False."),
            r"^It is not in the cache, and HF_HUB_OFFLINE is set; unset it, or name a folder\.$",
        ),
        (
            OfflineModeIsEnabled("Cannot reach https://huggingface.co/api: offline mode is enabled."),
            r"^The Hub is not asked while HF_HUB_OFFLINE is set; unset it\.$",
        ),
        (OSError("\nthe disk\nis full"), "^the disk$"),
    ],
)
def test_the_reason_comes_with_what_to_do(monkeypatch, error: Exception, expected: str) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert re.search(expected, why(error, "org/model"))


def test_where_the_hub_may_be_asked_the_network_is_to_be_looked_at(monkeypatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    told = why(LocalEntryNotFoundError("It is nowhere."), "org/model")
    assert told.startswith("It is not in the cache, and the Hub gives no answer; check the network")


def raising(error: Exception) -> Any:
    """A function of transformers that fails for that reason, as it does: with an error of its own."""

    def fail(*args: Any, **kwargs: Any) -> None:
        raise OSError("You are trying to access a gated repo.\nSee elsewhere.") from error

    return fail


def test_a_gated_base_a_missing_tokenizer_and_a_gated_adapter_say_so(monkeypatch) -> None:
    gated = answered(GatedRepoError, server=GATED)
    monkeypatch.setattr(PretrainedConfig, "get_config_dict", raising(gated))
    with pytest.raises(
        ConfigError, match=r"base model meta-llama/Llama-2-7b-chat-hf cannot .*restricted.*Ask for access"
    ):
        loading.load("llama-2-7b-chat", rule="full")
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", raising(answered(RepositoryNotFoundError)))
    with pytest.raises(ConfigError, match=r"no tokenizer in org/model: .*Check the name"):
        loading.load_tokenizer("org/model")
    monkeypatch.setattr(adapter_folders, "snapshot_download", raising(gated))
    with pytest.raises(AdapterError, match=r"the Hub gives no such adapter: .*restricted.*Ask for access"):
        loading.load("builtin", adapter="org/adapter")
