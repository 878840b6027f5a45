"""What the paper's authors published: short names of models, adapters by data set, and the naming of their folders.

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
from ccm.core.errors import unknown_name

SOURCE = "https://github.com/snu-mllab/Context-Memory"
_DRIVE = "https://drive.google.com/drive/folders/"


@dataclass(frozen=True)
class PaperModel:
    """A base model of the paper.

    Attributes:
        hub: the Hub id. For the first LLaMA, the authors converted Meta's files; this is the id of such a conversion.
        chat: whether the model was tuned for chats; turns are then written with "User" and "Assistant".
    """

    hub: str
    chat: bool = False


@dataclass(frozen=True)
class AdapterSet:
    """A folder of published adapters.

    Attributes:
        drive: the address of the folder.
        about: the data sets that its adapters were trained on.
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
    """The settings of an adapter that the name of the authors' folder tells.

    Attributes:
        model: the short name of the base.
        stage1: the folder name of the stage-1 adapter to merge into the base first; None if there is none.
        rule: the rule of the memory; "full" for a stage-1 adapter itself.
        recurrent: as in :class:`CCMConfig`.
        n_tok: N.
        sink: as in :class:`CCMConfig`.
        trained_on: the data set, which is the name of the parent folder; None if that is not one of the authors' names.
    """

    model: str
    stage1: str | None
    rule: str
    recurrent: bool
    n_tok: int
    sink: bool
    trained_on: str | None


def read_name(folder: Path) -> RunName | None:
    """The settings that a folder's name and its parents' names tell; None if the name is not one of the authors'."""
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
    """The format of turns for an adapter that was trained on a data set.

    Args:
        trained_on: the name of the data set; None stands for "unified".
        chat: whether the base was tuned for chats, which overrides the data set's format.

    Raises:
        ConfigError: if it is not one of the authors' data sets.
    """
    if trained_on is not None and trained_on not in DATA_SETS:
        raise unknown_name("data set of the authors' adapters", trained_on, DATA_SETS)
    if chat:
        return TurnFormat(
            separator="\nUser:", reply_separator="\nAssistant:", preamble="System: You are a chatbot agent. \n\n"
        )
    return TurnFormat(separator=_SEPARATORS[trained_on or "unified"], reply_separator="\nOutput:")


def paper_model(source: str | Path) -> PaperModel | None:
    """The model of the paper with a short name or Hub id; None for any other model, and for a folder of that name."""
    if Path(source).is_dir():
        return None
    return MODELS.get(str(source)) or next((model for model in MODELS.values() if model.hub == str(source)), None)
