"""The authors' adapters as ours: N from the tensors, the rest from a folder name of theirs, from options, or assumed.

adapter_config.json  pytorch_model.bin or model.safetensors  ->  ccm_config.json  ccm_adapter.safetensors
comp_embeddings  (N, hidden), merge: N rows of COMP, then N of SUM; in decoders these have no influence
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ccm.core.config import CCMConfig, LoRASettings, TurnFormat
from ccm.core.errors import AdapterError, listed
from ccm.engine.adapter_files import PEFT_CONFIG, SavedAdapter, check_fit, read_plain_lora, read_stage1
from ccm.engine.decoder import CCMModel
from ccm.engine.lora import PlainLoRA, check_plain, initial_embeddings
from ccm.models.base import load_base
from ccm.models.builtin import NAME
from ccm.models.load import TURNS, read_turns
from ccm.models.locate import is_builtin, locate
from ccm.models.published import MODELS, RunName, paper_model, read_name, turns_for

RULES_OF_THEIRS = ("concat", "merge", "gist", "pos_control")
NOTHING = "none"  # as the stage-1 adapter: the base has it in its weights already
T = TypeVar("T")


@dataclass(frozen=True)
class Choices:
    """What the user says of an adapter, beside its files; None where nothing is said.

    Attributes:
        base: folder, Hub id or short name of the base. It is loaded, and the adapter bound to it.
        rule: one of :data:`RULES_OF_THEIRS`.
        recurrent: as in the config.
        sink: as in the config.
        trained_on: the data set, which says how turns are written.
        base_adapter: folder of the stage-1 adapter, or "none" where the base has it in its weights already.
    """

    base: str | Path | None = None
    rule: str | None = None
    recurrent: bool | None = None
    sink: bool | None = None
    trained_on: str | None = None
    base_adapter: str | Path | None = None


@dataclass(frozen=True)
class Import:
    """An adapter of the authors, turned into one of ours but not written yet.

    Attributes:
        adapter: as :func:`ccm.engine.adapter_files.write_adapter` takes it.
        assumed: what neither the files nor the name nor the choices say, a sentence each.
    """

    adapter: SavedAdapter
    assumed: tuple[str, ...]


def read_theirs(folder: str | Path, choices: Choices | None = None) -> Import:
    """Read an adapter of the authors: a compression adapter, or a stage-1 adapter (also ours) as one for "full".

    Raises:
        AdapterError: when it is absent, damaged or not whole, has unknown or missing tensors, or contradicts its name,
            the choices or the base.
        ConfigError: when the base cannot be had, or a choice does not exist.
    """
    folder, choices, assumed = Path(folder), choices or Choices(), Assumed()
    if not folder.is_dir():
        raise AdapterError(f"There is no folder {folder}; ccm adapters download brings those of the authors.")
    lora, said = _as_float(read_plain_lora(folder)), read_name(folder)
    _check_whole(lora, folder)
    _check_kind(lora, said, choices, folder)
    if lora.comp is None and (folder / TURNS).is_file():  # not theirs, but a stage 1 of ours, which leaves nothing open
        place = locate(choices.base) if choices.base else lora.settings.get("base_model_name_or_path")
        return Import(_stage1_alone(lora, read_turns(folder), str(place or "")), ())
    place, chat = _base_model(choices, said, assumed)
    data_set = assumed.agreed(
        "data set", choices.trained_on, said.trained_on if said else None, None, "Turns are written as for unified."
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
    return Import(adapter if base is None else _bound(adapter, base, str(folder)), tuple(assumed.notes))


class Assumed:
    """Collects what was assumed.

    Attributes:
        notes: a sentence for each assumption.
    """

    def __init__(self) -> None:
        self.notes: list[str] = []

    def agreed(self, what: str, asked: T | None, said: T | None, default: T, note: str) -> T:
        """A setting: as the folder's name says, or as asked for, or else the default, which is noted.

        Raises:
            AdapterError: when name and choice contradict each other.
        """
        if said is not None and asked is not None and asked != said:
            raise AdapterError(
                f"The folder's name says {what} {said!r}, but {asked!r} is asked for; leave the choice out, or rename "
                "the folder if its name is wrong."
            )
        if said is None and asked is None:
            self.notes.append(note)
            return default
        return said if said is not None else asked  # type: ignore[return-value]  # one of them is there


def _memory(choices: Choices, said: RunName | None, sums: bool, assumed: Assumed) -> tuple[str, bool, bool]:
    """Rule, recurrence and sink."""
    default = "merge" if sums else "concat"
    why = "the second half of the COMP rows was never trained, as SUM rows" if sums else "the authors' default"
    rule = assumed.agreed("rule", choices.rule, said.rule if said else None, default, f"The rule is {default}: {why}.")
    if rule not in RULES_OF_THEIRS:
        raise AdapterError(f"The authors have no adapters for the rule {rule!r}; theirs: {', '.join(RULES_OF_THEIRS)}.")
    if sums and rule != "merge":
        assumed.notes.append(f"All rows are taken for COMP rows, but {why}: should the rule not be merge?")
    flag = "A step sees the memory while it is read (recurrent)."
    recurrent = assumed.agreed("recurrent", choices.recurrent, said.recurrent if said else None, True, flag)
    sink = assumed.agreed("sink", choices.sink, said.sink if said else None, False, "There is no sink.")
    return rule, recurrent, sink


def _sums(base: PreTrainedModel, comp: Tensor) -> bool:
    """Whether the second half of the rows belongs to SUM tokens: without a gradient, they are as initialized."""
    half, odd = divmod(len(comp), 2)
    if odd or comp.shape[1] != base.get_input_embeddings().weight.shape[1]:
        return False
    began = initial_embeddings(base, len(comp))[half:]
    return bool((comp[half:].float() - began).norm() < 0.01 * began.norm())


def _n_tok(rows: int, rule: str, said: RunName | None, folder: Path) -> int:
    """N, from the rows of the embeddings; a merge adapter also has SUM rows, unless they were left out."""
    fits = [rows // 2] if rule == "merge" and rows % 2 == 0 else []
    fits += [rows] if rule != "merge" or said else []
    if said and said.n_tok not in fits:
        raise AdapterError(f"{folder} has {rows} rows of COMP and SUM embeddings, but its name says N = {said.n_tok}.")
    if not fits:
        raise AdapterError(f"{folder} has {rows} rows of embeddings; a merge adapter has N of COMP and N of SUM.")
    return said.n_tok if said else fits[0]


def _base_model(choices: Choices, said: RunName | None, assumed: Assumed) -> tuple[str, bool]:
    """Where the base is, and whether it was tuned to chat."""
    known = None if choices.base is None else paper_model(choices.base)
    named = MODELS[said.model] if said else None
    if known and named and known != named:
        raise AdapterError(
            f"The folder's name says {named.hub}, but the base given is {known.hub}; use the model of the name."
        )
    if choices.base is not None:
        place = str(choices.base) if not Path(choices.base).is_dir() else str(Path(choices.base).resolve())
        model = known or named
        return str(locate(place)), model is not None and model.chat
    if named:
        assumed.notes.append(f"The base is {named.hub}; it was not looked at. Give it as base to compare.")
        return named.hub, named.chat
    assumed.notes.append(
        "The base is unknown, and has to be given whenever the adapter is loaded, unless it is given now, as base."
    )
    return "", False


def _stage1(choices: Choices, said: RunName | None, folder: Path, assumed: Assumed) -> PlainLoRA | None:
    """The stage-1 adapter on top of which this one was trained: the one chosen, or the one of the name, beside it."""
    if choices.base_adapter == NOTHING:
        return None
    if choices.base_adapter is not None:
        return _as_float(read_stage1(Path(choices.base_adapter)))
    if said is None:
        assumed.notes.append(
            "It was trained on the base as it is, unless a stage-1 adapter under it is given, as base_adapter."
        )
    if said is None or said.stage1 is None:
        return None
    near = [place / said.stage1 for place in (folder.absolute().parent.parent, folder.absolute().parent)]
    for place in near:
        if place.is_dir():
            return _as_float(read_stage1(place))
    raise AdapterError(
        f"{folder} was trained on top of the stage-1 adapter {said.stage1}, which is not in {near[0].parent}; give it "
        f"with base_adapter=DIR, or say base_adapter={NOTHING} if the base has it in its weights already."
    )


def _as_float(lora: PlainLoRA) -> PlainLoRA:
    return replace(lora, tensors={name: tensor.float() for name, tensor in lora.tensors.items()})


def _stage1_alone(lora: PlainLoRA, turns: TurnFormat, place: str) -> SavedAdapter:
    """A stage-1 adapter by itself: the base with it in its weights, and full context."""
    place = NAME if place and is_builtin(place) else place
    config = CCMConfig(rule="full", n_tok=1, lora=LoRASettings(r=0), turns=turns, base_model=place)
    hidden = next(tensor.shape[1] for name, tensor in lora.tensors.items() if "lora_A" in name)
    return SavedAdapter(config, {"comp_embeddings.weight": torch.zeros(1, hidden)}, lora)


def _bound(adapter: SavedAdapter, base: PreTrainedModel, where: str) -> SavedAdapter:
    """The adapter with the fingerprint of a base that it was found to fit."""
    check_fit(adapter.tensors, base, where)
    model = CCMModel(base, adapter.config, stage1=adapter.stage1)
    model.load_adapter(adapter.tensors, where)
    config = replace(adapter.config, base_fingerprint=model.base_id, base_vocab_size=model.vocab_size)
    return replace(adapter, config=config, base_signs=model.base_signs, base_settings=model.base_settings)


def _check_kind(lora: PlainLoRA, said: RunName | None, choices: Choices, folder: Path) -> None:
    """Refuse a stage-1 adapter under the name or with the choices of a compression adapter, or the other way."""
    choices = replace(choices, base_adapter=None) if choices.base_adapter == NOTHING else choices  # that is so
    asked = [n for n in ("rule", "recurrent", "sink", "base_adapter") if getattr(choices, n) is not None]
    if lora.comp is None and asked:
        raise AdapterError(
            f"{folder} holds no COMP embeddings, so it is a stage-1 adapter; {', '.join(asked)} has no meaning."
        )
    if said and (said.rule == "full") != (lora.comp is None):
        named = "a stage-1 adapter" if said.rule == "full" else "a compression adapter"
        rows = "no" if lora.comp is None else f"{len(lora.comp)} rows of"
        raise AdapterError(
            f"{folder} has the name of {named}, but holds {rows} COMP embeddings; those that were trained "
            "without sepembed are in the base's own table, and cannot be imported."
        )


def _check_whole(lora: PlainLoRA, folder: Path) -> None:
    """Refuse a LoRA that lacks tensors, or whose tensors are of another rank than its settings say."""
    check_plain(lora.settings, str(folder))
    targets = lora.settings["target_modules"]
    if not isinstance(targets, list) or not all(isinstance(target, str) for target in targets):
        raise AdapterError(f"{folder / PEFT_CONFIG} has target_modules {targets!r}; it must be a list of names.")
    flat = [name for name, tensor in lora.tensors.items() if tensor.ndim != 2]
    if flat or (lora.comp is not None and lora.comp.ndim != 2):
        raise AdapterError(f"{folder} holds tensors that are no matrices: {listed(flat or ['comp_embeddings'])}.")
    modules = {name.rpartition(".lora_")[0] for name in lora.tensors}
    layers = {module.rpartition(".self_attn.")[0] for module in modules}
    numbers = [int(layer.rpartition(".")[2]) for layer in layers if layer.rpartition(".")[2].isdigit()]
    every = {re.sub(r"\d+$", str(n), layer) for layer in layers for n in range(max(numbers, default=0) + 1)}
    named = {f"{layer}.self_attn.{target}" for layer in every for target in targets if "." not in target}
    whole = {target for target in targets if "." in target}  # a module by its whole name, as stage 1 has them
    wanted = {f"{module}.lora_{side}.weight" for module in named | whole for side in "AB"}
    missing, unknown = wanted - lora.tensors.keys(), lora.tensors.keys() - wanted
    if missing or unknown:
        raise AdapterError(
            f"{folder} has not the tensors that its {PEFT_CONFIG} tells of: missing {listed(missing)}, unknown "
            f"{listed(unknown)}."
        )
    rank = lora.settings["r"]
    for name, tensor in lora.tensors.items():
        if (held := tensor.shape[0 if "lora_A" in name else 1]) != rank:
            raise AdapterError(f"{folder}: {name} is of rank {held}, but its {PEFT_CONFIG} says r = {rank}.")
