"""What the paper's authors published: models by their short names, adapters by data set, and what names of theirs mean.

From https://github.com/snu-mllab/Context-Memory at a89dd08: ``path_config.py`` (models), ``download.py`` (addresses),
``src/test_case.py`` and ``src/test_interact.py`` (turns), ``run.py`` (folder names).

    unified/llama-7b-no                                              a stage-1 adapter
    pretrain/finetune/llama-7b-no-online-concat_recur-ntok2-sink     trained on top of it
             '------ model - comp_type - attn_type - N - sink'
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from ccm.core.config import TurnFormat
from ccm.core.errors import ConfigError, did_you_mean

SOURCE = "https://github.com/snu-mllab/Context-Memory"
_DRIVE = "https://drive.google.com/drive/folders/"


@dataclass(frozen=True)
class PaperModel:
    """A base model of the paper.

    Attributes:
        hub: its Hub id. Of the first LLaMA the authors converted Meta's files themselves; these are such conversions.
        chat: whether it was tuned to chat, so that its turns are written with User and Assistant.
    """

    hub: str
    chat: bool = False


@dataclass(frozen=True)
class AdapterSet:
    """A folder of published adapters.

    Attributes:
        drive: where it lies.
        about: what its adapters were trained on.
    """

    drive: str
    about: str


MODELS = {
    "llama-7b": PaperModel("huggyllama/llama-7b"),
    "llama-13b": PaperModel("huggyllama/llama-13b"),
    "llama-2-7b": PaperModel("meta-llama/Llama-2-7b-hf"),
    "llama-2-7b-chat": PaperModel("meta-llama/Llama-2-7b-chat-hf", chat=True),
    "llama-2-13b": PaperModel("meta-llama/Llama-2-13b-hf"),
    "llama-2-13b-chat": PaperModel("meta-llama/Llama-2-13b-chat-hf", chat=True),
    "mistral-7b": PaperModel("mistralai/Mistral-7B-v0.1"),
    "mistral-7b-inst": PaperModel("mistralai/Mistral-7B-Instruct-v0.2", chat=True),
    "flan-t5-base": PaperModel("google/flan-t5-base"),
    "flan-t5-large": PaperModel("google/flan-t5-large"),
}
ADAPTERS = {
    "unified": AdapterSet(_DRIVE + "1L1KZzpBt5jN7Fb1CB24EzzFwpCpUZWbf", "MetaICL and SODA"),
    "pretrain": AdapterSet(
        _DRIVE + "1e2aWOZYsFvAsu6Z-faQXQF2sh5wYbi03", "RedPajama-V2, LMSYS-Chat-1M, MetaICL and SODA"
    ),
    "metaicl": AdapterSet(_DRIVE + "1Xr3NUfZrGI-xyOoTFbCgijaz8efT88Tm", "MetaICL"),
    "dialog": AdapterSet(_DRIVE + "1YkQDYjvWhOpQFBGF2-jKnrzUsRxpumT_", "DailyDialog"),
    "lamp": AdapterSet(_DRIVE + "17mdbKXw5T5guhl0PQiSvdiDmnuj0fE1i", "LaMP"),
}
_SEPARATORS = {
    "unified": "\nA:",
    "soda": "\nA:",
    "dialog": "\nA:",
    "lamp": "\nA:",
    "metaicl": "\nInput:",
    "pretrain": "\n",
}
DATA_SETS = (*_SEPARATORS,)

_MODEL = "(?P<model>" + "|".join(map(re.escape, sorted(MODELS, key=len, reverse=True))) + ")"
_STAGE1 = re.compile(_MODEL + r"-(?:r\d+-)?no(?:-k\d+)?(?:_.*)?")
_COMPRESSION = re.compile(
    _MODEL + r"(?P<stage1>-(?:r\d+-)?no(?:_[^-]*)?)?-(?:r\d+-)?(?P<comp>online|fixed|pos_control)"
    r"-(?P<attn>concat|merge|gist)(?P<recur>_recur)?(?:-ntok(?P<n_tok>\d+))?(?P<sink>-sink)?(?:-k\d+)?(?:_.*)?"
)


@dataclass(frozen=True)
class RunName:
    """What the name of one of the authors' folders says.

    Attributes:
        model: short name of the base.
        stage1: name of the stage-1 adapter that is merged into the base first; None where there is none.
        rule: of the memory; "full" for a stage-1 adapter itself.
        recurrent: as in the config.
        n_tok: N.
        sink: as in the config.
        trained_on: the data set, which is the folder around it; None where that is no name of theirs.
    """

    model: str
    stage1: str | None
    rule: str
    recurrent: bool
    n_tok: int
    sink: bool
    trained_on: str | None


def read_name(folder: Path) -> RunName | None:
    """What a folder's name says, and the names around it; None where it is none of theirs."""
    place = folder.absolute()
    around = place.parent.parent if place.parent.name in ("finetune", "test") else place.parent
    trained_on = re.sub(r"-len\d+$", "", around.name)
    known = trained_on if trained_on in DATA_SETS else None
    if found := _COMPRESSION.fullmatch(place.name):
        rule = {"fixed": "gist", "pos_control": "pos_control"}.get(found["comp"], found["attn"])
        stage1 = found["model"] + found["stage1"] if found["stage1"] else None
        n_tok = int(found["n_tok"] or 1)
        return RunName(found["model"], stage1, rule, bool(found["recur"]), n_tok, bool(found["sink"]), known)
    if found := _STAGE1.fullmatch(place.name):
        return RunName(found["model"], None, "full", False, 1, False, known)
    return None


def turns_for(trained_on: str | None, *, chat: bool) -> TurnFormat:
    """How the turns of an adapter are written that was trained on that data set.

    Raises:
        ConfigError: when it is none of the authors' data sets.
    """
    if trained_on is not None and trained_on not in DATA_SETS:
        raise ConfigError(
            f"{trained_on!r} is no data set of the authors' adapters; allowed: {', '.join(DATA_SETS)}."
            + did_you_mean([trained_on], DATA_SETS)
        )
    if chat:
        return TurnFormat(
            separator="\nUser:", reply_separator="\nAssistant:", preamble="System: You are a chatbot agent. \n\n"
        )
    return TurnFormat(separator=_SEPARATORS[trained_on or "unified"], reply_separator="\nOutput:")


def paper_model(source: str | Path) -> PaperModel | None:
    """The model of that short name, or of that Hub id; None where it is another, or a folder has that name."""
    if Path(source).is_dir():
        return None
    return MODELS.get(str(source)) or next((model for model in MODELS.values() if model.hub == str(source)), None)
