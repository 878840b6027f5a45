"""Importing the authors' adapters.

N follows from the tensors. Other settings follow from the folder's name or from the user's choices, or are assumed.

adapter_config.json  pytorch_model.bin or model.safetensors  ->  ccm_config.json  ccm_adapter.safetensors
comp_embeddings  (N, hidden); merge: N rows for COMP, then N rows for SUM, which do not affect decoders
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ccm.core.adapter_folders import PEFT_CONFIG
from ccm.core.config import CCMConfig, LoRASettings, TurnFormat
from ccm.core.errors import AdapterError, listed
from ccm.engine.adapter_files import SavedAdapter, check_fit, read_plain_lora, read_stage1
from ccm.engine.decoder import CCMModel
from ccm.engine.lora import PlainLoRA, check_plain, initial_embeddings
from ccm.models.base import load_base
from ccm.models.builtin import NAME
from ccm.models.load import TURNS, read_turns
from ccm.models.locate import is_builtin, locate
from ccm.models.published import MODELS, RunName, paper_model, read_name, turns_for

PUBLISHED_RULES = ("concat", "merge", "gist", "pos_control")
NOTHING = "none"  # as base_adapter: the base already has the stage-1 adapter in its weights
T = TypeVar("T")


@dataclass(frozen=True)
class Choices:
    """The user's choices for settings of an adapter that its files do not tell; None leaves a setting open.

    Attributes:
        base: the folder, Hub id or short name of the base. The base is loaded, and the adapter is bound to it.
        rule: one of :data:`PUBLISHED_RULES`.
        recurrent: as in :class:`CCMConfig`.
        sink: as in :class:`CCMConfig`.
        trained_on: the data set of the training, which determines the format of turns.
        base_adapter: the folder of the stage-1 adapter, or "none" if the base already has it in its weights.
    """

    base: str | Path | None = None
    rule: str | None = None
    recurrent: bool | None = None
    sink: bool | None = None
    trained_on: str | None = None
    base_adapter: str | Path | None = None


@dataclass(frozen=True)
class ImportedAdapter:
    """An adapter of the authors in our form, not written yet.

    Attributes:
        adapter: the adapter, for :func:`ccm.engine.adapter_files.write_adapter`.
        assumed: a sentence for each setting that neither the files nor the name nor the choices tell.
    """

    adapter: SavedAdapter
    assumed: tuple[str, ...]


def read_theirs(folder: str | Path, choices: Choices | None = None) -> ImportedAdapter:
    """Read an adapter of the authors, or a stage-1 adapter of either origin, which becomes an adapter for "full".

    Args:
        folder: the folder of the adapter.
        choices: the user's choices; None leaves all settings open.

    Raises:
        AdapterError: if the adapter is absent, damaged or incomplete, has unknown or missing tensors, or contradicts
            its name, the choices or the base.
        ConfigError: if the base cannot be loaded, or a choice does not exist.
    """
    folder, choices, assumed = Path(folder), choices or Choices(), Assumptions()
    if not folder.is_dir():
        raise AdapterError(f"There is no folder {folder}; `ccm adapters download` fetches the authors' adapters.")
    lora, said = _as_float(read_plain_lora(folder)), read_name(folder)
    _check_whole(lora, folder)
    _check_kind(lora, said, choices, folder)
    if lora.comp is None and (folder / TURNS).is_file():  # a stage-1 adapter of ours, whose files tell everything
        place = locate(choices.base) if choices.base else lora.settings.get("base_model_name_or_path")
        return ImportedAdapter(_stage1_alone(lora, read_turns(folder), str(place or "")), ())
    place, chat = _base_model(choices, said, assumed)
    data_set = assumed.agreed(
        "data set",
        choices.trained_on,
        said.trained_on if said else None,
        None,
        "Turns are written as in the data set unified.",
    )
    turns = turns_for(data_set, chat=chat)
    base = None if choices.base is None else load_base(choices.base, device_map="cpu")  # in the dtype of its files
    if lora.comp is None:
        adapter = _stage1_alone(lora, turns, place)
    else:
        rule, recurrent, sink = _memory(choices, said, base is not None and _sums(base, lora.comp), assumed)
        comp = lora.comp.float()[: _n_tok(len(lora.comp), rule, said, folder)]
        scale = LoRASettings(lora.settings["r"], lora.settings["lora_alpha"], lora.settings.get("lora_dropout", 0.0))
        config = CCMConfig(rule, {}, len(comp), None, None, recurrent, sink, lora=scale, turns=turns, base_model=place)
        tensors = {**lora.tensors, "comp_embeddings.weight": comp}
        adapter = SavedAdapter(config, tensors, _stage1(choices, said, folder, assumed))
    return ImportedAdapter(adapter if base is None else _bound(adapter, base, str(folder)), tuple(assumed.notes))


class Assumptions:
    """Collects the assumptions that an import makes.

    Attributes:
        notes: a sentence for each assumption.
    """

    def __init__(self) -> None:
        self.notes: list[str] = []

    def agreed(self, what: str, asked: T | None, said: T | None, default: T, note: str) -> T:
        """The value of a setting: the folder's name or the user's choice tells it, or the default is assumed.

        Args:
            what: the name of the setting.
            asked: the user's choice, or None.
            said: the value in the folder's name, or None.
            default: the value to assume otherwise.
            note: the sentence to record for this assumption.

        Raises:
            AdapterError: if name and choice contradict each other.
        """
        if said is not None and asked is not None and asked != said:
            raise AdapterError(
                f"The folder's name says {what} {said!r}, but {asked!r} is asked for; leave the choice out, or rename "
                "the folder if the name is wrong."
            )
        if said is None and asked is None:
            self.notes.append(note)
            return default
        return said if said is not None else asked  # type: ignore[return-value]  # one of them is there


def _memory(choices: Choices, said: RunName | None, sums: bool, assumed: Assumptions) -> tuple[str, bool, bool]:
    """The rule, and whether the memory is recurrent and has a sink; ``sums`` is whether there are SUM rows."""
    default = "merge" if sums else "concat"
    why = "the second half of the COMP rows was never trained, like SUM rows" if sums else "the authors' default"
    rule = assumed.agreed("rule", choices.rule, said.rule if said else None, default, f"The rule is {default}: {why}.")
    if rule not in PUBLISHED_RULES:
        raise AdapterError(
            f"The authors published no adapters for the rule {rule!r}; allowed: {', '.join(PUBLISHED_RULES)}."
        )
    if sums and rule != "merge":
        assumed.notes.append(f"All rows are COMP rows; but {why}, so the rule may have to be merge.")
    flag = "The memory is recurrent: a step sees the memory while it is read."
    recurrent = assumed.agreed("recurrent", choices.recurrent, said.recurrent if said else None, True, flag)
    sink = assumed.agreed("sink", choices.sink, said.sink if said else None, False, "There is no sink.")
    return rule, recurrent, sink


def _sums(base: PreTrainedModel, comp: Tensor) -> bool:
    """Whether the second half of the rows is for SUM tokens, which get no gradient and keep their initial values."""
    half, odd = divmod(len(comp), 2)
    if odd or comp.shape[1] != base.get_input_embeddings().weight.shape[1]:
        return False
    initial = initial_embeddings(base, len(comp))[half:]
    return bool((comp[half:].float() - initial).norm() < 0.01 * initial.norm())


def _n_tok(rows: int, rule: str, said: RunName | None, folder: Path) -> int:
    """N, from the number of embedding rows; half of a merge adapter's rows are for SUM, unless they were left out."""
    fits = [rows // 2] if rule == "merge" and rows % 2 == 0 else []
    fits += [rows] if rule != "merge" or said else []
    if said and said.n_tok not in fits:
        raise AdapterError(f"{folder} has {rows} rows of COMP and SUM embeddings, but its name says N = {said.n_tok}.")
    if not fits:
        raise AdapterError(f"{folder} has {rows} rows of embeddings; a merge adapter has N for COMP and N for SUM.")
    return said.n_tok if said else fits[0]


def _base_model(choices: Choices, said: RunName | None, assumed: Assumptions) -> tuple[str, bool]:
    """The folder or Hub id of the base, and whether the base was tuned for chats."""
    known = None if choices.base is None else paper_model(choices.base)
    named = MODELS[said.model] if said else None
    if known and named and known != named:
        raise AdapterError(
            f"The folder's name says {named.hub}, but the base given is {known.hub}; give the base of the name."
        )
    if choices.base is not None:
        place = str(choices.base) if not Path(choices.base).is_dir() else str(Path(choices.base).resolve())
        model = known or named
        return str(locate(place)), model is not None and model.chat
    if named:
        assumed.notes.append(f"The base is {named.hub}. The adapter was not compared with it; give base to do so.")
        return named.hub, named.chat
    assumed.notes.append("The base is unknown. Give it as base now, or whenever the adapter is loaded.")
    return "", False


def _stage1(choices: Choices, said: RunName | None, folder: Path, assumed: Assumptions) -> PlainLoRA | None:
    """The stage-1 adapter that the adapter was trained on: the chosen one, or else the one that its name tells."""
    if choices.base_adapter == NOTHING:
        return None
    if choices.base_adapter is not None:
        return _as_float(read_stage1(Path(choices.base_adapter)))
    if said is None:
        assumed.notes.append(
            "It was trained on the base without a stage-1 adapter. If that is wrong, give base_adapter."
        )
    if said is None or said.stage1 is None:
        return None
    near = [place / said.stage1 for place in (folder.absolute().parent.parent, folder.absolute().parent)]
    for place in near:
        if place.is_dir():
            return _as_float(read_stage1(place))
    raise AdapterError(
        f"{folder} was trained on top of the stage-1 adapter {said.stage1}, which is not in {near[0].parent}; give it "
        f"with base_adapter=DIR, or set base_adapter={NOTHING} if the base already has it in its weights."
    )


def _as_float(lora: PlainLoRA) -> PlainLoRA:
    return replace(lora, tensors={name: tensor.float() for name, tensor in lora.tensors.items()})


def _stage1_alone(lora: PlainLoRA, turns: TurnFormat, place: str) -> SavedAdapter:
    """A stage-1 adapter by itself, as an adapter for the rule "full"."""
    place = NAME if place and is_builtin(place) else place
    config = CCMConfig(rule="full", n_tok=1, lora=LoRASettings(r=0), turns=turns, base_model=place)
    hidden = next(tensor.shape[1] for name, tensor in lora.tensors.items() if "lora_A" in name)
    return SavedAdapter(config, {"comp_embeddings.weight": torch.zeros(1, hidden)}, lora)


def _bound(adapter: SavedAdapter, base: PreTrainedModel, where: str) -> SavedAdapter:
    """The adapter with the fingerprint of its base; raises AdapterError if the two do not fit."""
    check_fit(adapter.tensors, base, where)
    model = CCMModel(base, adapter.config, stage1=adapter.stage1)
    model.load_adapter(adapter.tensors, where)
    config = replace(adapter.config, base_fingerprint=model.base_id, base_vocab_size=model.vocab_size)
    return replace(adapter, config=config, base_signs=model.base_signs, base_settings=model.base_settings)


def _check_kind(lora: PlainLoRA, said: RunName | None, choices: Choices, folder: Path) -> None:
    """Refuse an adapter whose kind, stage 1 or compression, contradicts its name or the choices."""
    choices = replace(choices, base_adapter=None) if choices.base_adapter == NOTHING else choices
    asked = [n for n in ("rule", "recurrent", "sink", "base_adapter") if getattr(choices, n) is not None]
    if lora.comp is None and asked:
        raise AdapterError(
            f"{folder} holds no COMP embeddings, so it is a stage-1 adapter; leave {', '.join(asked)} out."
        )
    if said and (said.rule == "full") != (lora.comp is None):
        named = "a stage-1 adapter" if said.rule == "full" else "a compression adapter"
        rows = "no" if lora.comp is None else f"{len(lora.comp)} rows of"
        raise AdapterError(
            f"{folder} has the name of {named}, but holds {rows} COMP embeddings. Adapters that were trained without "
            "sepembed have COMP embeddings in the base's own table, and cannot be imported."
        )


def _check_whole(lora: PlainLoRA, folder: Path) -> None:
    """Refuse a LoRA that lacks tensors, or whose rank differs from that in its settings."""
    check_plain(lora.settings, str(folder))
    targets = lora.settings["target_modules"]
    if not isinstance(targets, list) or not all(isinstance(target, str) for target in targets):
        raise AdapterError(f"{folder / PEFT_CONFIG} has target_modules {targets!r}; it must be a list of names.")
    flat = [name for name, tensor in lora.tensors.items() if tensor.ndim != 2]
    if flat or (lora.comp is not None and lora.comp.ndim != 2):
        raise AdapterError(f"{folder} holds tensors that are not matrices: {listed(flat or ['comp_embeddings'])}.")
    modules = {name.rpartition(".lora_")[0] for name in lora.tensors}
    layers = {module.rpartition(".self_attn.")[0] for module in modules}
    numbers = [int(layer.rpartition(".")[2]) for layer in layers if layer.rpartition(".")[2].isdigit()]
    every = {re.sub(r"\d+$", str(n), layer) for layer in layers for n in range(max(numbers, default=0) + 1)}
    named = {f"{layer}.self_attn.{target}" for layer in every for target in targets if "." not in target}
    whole = {target for target in targets if "." in target}  # stage 1 names each module in full
    wanted = {f"{module}.lora_{side}.weight" for module in named | whole for side in "AB"}
    missing, unknown = wanted - lora.tensors.keys(), lora.tensors.keys() - wanted
    if missing or unknown:
        raise AdapterError(
            f"The tensors in {folder} differ from its {PEFT_CONFIG}: missing {listed(missing)}, unknown "
            f"{listed(unknown)}."
        )
    rank = lora.settings["r"]
    for name, tensor in lora.tensors.items():
        if (held := tensor.shape[0 if "lora_A" in name else 1]) != rank:
            raise AdapterError(f"{folder}: {name} has rank {held}, but the {PEFT_CONFIG} says r = {rank}.")
