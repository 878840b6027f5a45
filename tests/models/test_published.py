"""What the authors' names say."""

from __future__ import annotations

from pathlib import Path

import pytest

from ccm.core.config import TurnFormat
from ccm.core.errors import ConfigError
from ccm.models import load as loading
from ccm.models.locate import locate
from ccm.models.published import ADAPTERS, DATA_SETS, MODELS, RunName, paper_model, read_name, turns_for

CHAT = TurnFormat("separators", "\nUser:", "\nAssistant:", "System: You are a chatbot agent. \n\n")


@pytest.mark.parametrize(
    ("folder", "said"),
    [
        (
            "pretrain/finetune/llama-7b-no-online-concat_recur-ntok2-sink_pajama",
            RunName("llama-7b", "llama-7b-no", "concat", True, 2, True, "pretrain"),
        ),
        (
            "unified/finetune/llama-7b-no-online-merge_recur-ntok8",
            RunName("llama-7b", "llama-7b-no", "merge", True, 8, False, "unified"),
        ),
        (
            "pretrain/llama-2-7b-chat-online-merge_recur-ntok8-sink",
            RunName("llama-2-7b-chat", None, "merge", True, 8, True, "pretrain"),
        ),
        (
            "metaicl/finetune/llama-13b-no-online-concat",
            RunName("llama-13b", "llama-13b-no", "concat", False, 1, False, "metaicl"),
        ),
        (
            "dialog/mistral-7b-inst-r16-online-merge-ntok4",
            RunName("mistral-7b-inst", None, "merge", False, 4, False, "dialog"),
        ),
        ("lamp-len2048/llama-2-7b-fixed-gist-ntok64", RunName("llama-2-7b", None, "gist", False, 64, False, "lamp")),
        (
            "soda/flan-t5-large-pos_control-concat_recur",
            RunName("flan-t5-large", None, "pos_control", True, 1, False, "soda"),
        ),
        ("dialog/llama-7b-no", RunName("llama-7b", None, "full", False, 1, False, "dialog")),
        ("elsewhere/llama-7b-no_batch8_2000", RunName("llama-7b", None, "full", False, 1, False, None)),
    ],
)
def test_a_name_of_theirs_says_all_settings(folder: str, said: RunName) -> None:
    assert read_name(Path(folder)) == said


@pytest.mark.parametrize(
    "name",
    ["concat_ntok2", "llama-7b", "my-llama-7b-no", "llama-3-8b-no", "llama-7b-online", "llama-7b-online-ema-ntok2"],
)
def test_another_name_says_nothing(name: str) -> None:
    assert read_name(Path("unified") / name) is None


def test_turns_follow_the_data_set_and_chat_models_have_their_own() -> None:
    separators = {name: turns_for(name, chat=False).separator for name in DATA_SETS}
    assert separators.pop("metaicl") == "\nInput:"
    assert separators.pop("pretrain") == "\n"
    assert {*separators.values()} == {"\nA:"}
    assert turns_for("metaicl", chat=False).reply_separator == "\nOutput:"
    assert turns_for("metaicl", chat=True) == turns_for(None, chat=True) == CHAT
    with pytest.raises(ConfigError, match="'metaicle'. Did you mean metaicl"):
        turns_for("metaicle", chat=False)


def test_a_short_name_is_a_model_of_the_hub_unless_a_folder_has_it(tmp_path: Path, monkeypatch) -> None:
    assert locate("llama-2-7b-chat") == "meta-llama/Llama-2-7b-chat-hf"
    assert locate("org/model") == "org/model"
    assert paper_model("mistralai/Mistral-7B-v0.1") is MODELS["mistral-7b"]
    monkeypatch.chdir(tmp_path)
    Path("llama-2-7b-chat").mkdir()
    assert locate("llama-2-7b-chat") == "llama-2-7b-chat"


def test_a_short_name_has_the_turns_of_the_paper() -> None:
    tokenizer = loading.load_tokenizer("builtin")
    assert loading.turn_format("llama-2-13b-chat", tokenizer) == CHAT
    assert loading.turn_format("llama-13b", tokenizer).separator == "\nA:"
    assert loading.turn_format("meta-llama/Llama-2-13b-hf", tokenizer) == TurnFormat(template="separators")


def test_every_set_of_adapters_has_a_place_of_its_own() -> None:
    assert len({one.drive for one in ADAPTERS.values()}) == len(ADAPTERS) == 5
