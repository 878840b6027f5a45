"""Adapters on disk: ours, and a reader for the authors'.

    adapter/  ccm_config.json  ccm_adapter.safetensors  [base_adapter/]      base_adapter: a plain PEFT LoRA, stage 1

Several adapters may share a stage-1 adapter that stands beside them; their settings then name its folder.

The tensors' manifest tells digests of the settings and of base_adapter, so that only what was saved together is read.
There is no ``adapter_config.json``: plain PEFT, which would run the LoRA on every token, finds nothing to load.
"""

from __future__ import annotations

import re
import shutil
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from torch import Tensor
from transformers import PreTrainedModel

from ccm.core.config import CCMConfig
from ccm.core.errors import AdapterError, ConfigError, listed, reason
from ccm.core.files import SafetensorError, as_path, load_tensors, locking, read_json, save_json, save_tensors
from ccm.core.hub import why
from ccm.core.processes import get_logger
from ccm.core.rules import RULES, rule_class
from ccm.core.tensor_files import FORMAT_VERSION, check_version, digest, read_file, write_file
from ccm.engine.families import PROJECTIONS
from ccm.engine.fingerprint import RELATED, flipped
from ccm.engine.lora import PlainLoRA

logger = get_logger(__name__)
KIND, VERSION, SIGNS, SETTINGS = "ccm_adapter", "format_version", "base_signs", "base_settings"
CONFIG, WEIGHTS, STAGE1 = "ccm_config.json", "ccm_adapter.safetensors", "base_adapter"
PEFT_CONFIG = "adapter_config.json"
_BESIDE = re.compile(r"\.\./(?!\.)[^/\\]+")


@dataclass(frozen=True)
class SavedAdapter:
    """What an adapter folder holds.

    Attributes:
        config: the settings, with the fingerprint of the base model.
        tensors: all that was trained, by name, on the CPU.
        stage1: the plain LoRA to merge into the base first; None where there is none.
        base_signs: (up to 8,192,) uint8, see :func:`ccm.engine.fingerprint.pack_signs`; None where there are none.
        base_settings: see :func:`ccm.engine.fingerprint.effective_settings`; None where there are none.
    """

    config: CCMConfig
    tensors: dict[str, Tensor]
    stage1: PlainLoRA | None
    base_signs: Tensor | None = None
    base_settings: Mapping[str, Any] | None = None

    @property
    def for_encoder(self) -> bool:
        """Whether it is of an encoder-decoder, as the names of its tensors tell: no conversation runs on it."""
        stage1 = self.stage1.tensors if self.stage1 else {}
        return any(name.startswith("encoder.") for name in (*self.tensors, *stage1))

    def tensors_for(self, rule: str) -> dict[str, Tensor]:
        """The tensors for a model under that rule: another one than the adapter's own has no use for its parameters."""
        return {n: t for n, t in self.tensors.items() if rule == self.config.rule or not n.startswith("rule.")}


def write_adapter(adapter: SavedAdapter, folder: str | Path, *, shared: str = "") -> None:
    """Write an adapter folder, each file atomically and the settings last: a folder without them is not complete.

    Args:
        adapter: what to write.
        folder: where to.
        shared: name of the folder beside it that holds the stage-1 adapter, which several then share; by itself where
            empty.

    Raises:
        AdapterError: when the path is none, or a file, no folder can be made or written there, or the folder beside it
            holds another stage-1 adapter.
    """
    target = as_path(folder, AdapterError)
    if target.is_file():
        raise AdapterError(f"{folder} is a file; name a folder for the adapter.")
    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise AdapterError(
            f"{folder} cannot be made a folder ({reason(error)}); name another one for the adapter."
        ) from error
    try:
        with locking(target):
            _write(adapter, target, shared and f"../{shared}")
    except (OSError, SafetensorError) as error:
        raise AdapterError(f"The adapter cannot be saved in {folder}: {reason(error)}.") from error


def _write(adapter: SavedAdapter, target: Path, beside: str) -> None:
    stage1 = read_stage1(target / beside) if beside else adapter.stage1  # whose settings may name the base otherwise
    if beside and (adapter.stage1 is None or stage1 is None or stage1.fingerprint != adapter.stage1.fingerprint):
        raise AdapterError(f"{target / beside} does not hold the stage-1 adapter of what is to be written to {target}.")
    if adapter.stage1 and not beside:
        (target / STAGE1).mkdir(exist_ok=True)
        named = {f"base_model.model.{name}": tensor for name, tensor in adapter.stage1.tensors.items()}
        save_tensors(target / STAGE1 / "adapter_model.safetensors", named, {"format": "pt"})
        save_json(target / STAGE1 / PEFT_CONFIG, adapter.stage1.settings)
    elif (target / CONFIG).is_file() and (target / STAGE1).is_dir():  # of the adapter that is now replaced
        shutil.rmtree(target / STAGE1)
    signs = {} if adapter.base_signs is None else {SIGNS: adapter.base_signs}
    settings = {VERSION: FORMAT_VERSION, **adapter.config.to_dict(), **({STAGE1: beside} if beside else {})}
    manifest: dict[str, Any] = {**_pair(settings, stage1), SETTINGS: adapter.base_settings}
    write_file(target / WEIGHTS, KIND, {**adapter.tensors, **signs}, manifest)
    save_json(target / CONFIG, settings)


def read_adapter(folder: Path) -> SavedAdapter:
    """Read an adapter folder of ours (see :func:`find_adapter`), as it was saved.

    Raises:
        AdapterError: when it is damaged, of a newer version, was not copied whole, or holds files of several adapters.
    """
    with locking(folder, shared=True):
        settings = _read_settings(folder)
        config = _config(settings)
        place = folder / settings.get(STAGE1, STAGE1)
        stage1 = read_stage1(place) if STAGE1 in settings or place.is_dir() else None
        if not (folder / WEIGHTS).exists():
            raise AdapterError(f"{folder / WEIGHTS} is missing; the adapter was not copied whole.")
        tensors, told = read_file(folder / WEIGHTS, KIND, AdapterError, bare=True)
    held = _pair(settings, stage1)
    if told[VERSION] == 1:
        held = {STAGE1: stage1.fingerprint if stage1 else ""}
        told = {**held, **told}  # the oldest do not tell
        if settings.get(VERSION, 1) != 1:
            raise AdapterError(f"{folder / CONFIG} was not saved with the tensors beside it, which are of version 1.")
    if told.get(STAGE1) != held[STAGE1]:
        was, now = (str(found)[:16] or "(none)" for found in (told.get(STAGE1), held[STAGE1]))
        raise AdapterError(
            f"{folder} was saved with the stage-1 adapter {was} in {settings.get(STAGE1, STAGE1)}, but there is {now}; "
            "the adapter was not copied whole."
        )
    if any(told.get(name) != value for name, value in held.items()):
        raise AdapterError(
            f"{folder / CONFIG} and {WEIGHTS} were not saved together: one is of another adapter, or was changed. Take "
            "both from one copy; of the settings, only base_model may be changed by hand."
        )
    return SavedAdapter(config, tensors, stage1, tensors.pop(SIGNS, None), told.get(SETTINGS))


def _pair(settings: Mapping[str, Any], stage1: PlainLoRA | None) -> dict[str, str]:
    """What the tensors' manifest tells of the files beside them; ``base_model`` is a hint that may change."""
    bound = {name: value for name, value in settings.items() if name not in (VERSION, "base_model")}
    return {"settings": digest({}, bound), STAGE1: digest(stage1.tensors, stage1.settings) if stage1 else ""}


def find_adapter(source: str | Path, **hub: Any) -> Path:
    """The folder of an adapter: a local one, or a snapshot of a Hub repository, had with the ``hub`` options.

    Raises:
        AdapterError: when there is none, or it holds no adapter of ours.
    """
    folder = as_path(source, AdapterError)
    if not folder.is_dir():
        try:
            folder = Path(snapshot_download(str(source), **hub))
        except (HFValidationError, LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
            raise AdapterError(
                f"There is no folder {source}, and the Hub gives no such adapter: {why(error, source)}"
            ) from error
    if (folder / CONFIG).is_file():
        return folder
    held = [p.name for p in folder.iterdir()]
    hint = (
        f" It is a plain LoRA of PEFT, or one of the authors' adapters: `ccm adapters show {source}` says which, and "
        "`ccm adapters import` makes an adapter of it."
        if PEFT_CONFIG in held
        else ""
    )
    raise AdapterError(
        f"{folder} holds no adapter: {CONFIG} is missing (found: {listed(held) if held else 'nothing'}).{hint}"
    )


def is_plain_lora(source: str | Path) -> bool:
    """Whether it is a folder of PEFT or of the authors, not one of ours."""
    return (Path(source) / PEFT_CONFIG).is_file() and not (Path(source) / CONFIG).is_file()


def read_config(folder: Path) -> CCMConfig:
    """The settings of an adapter folder.

    Raises:
        AdapterError: when the file is not what :func:`write_adapter` writes, or of a newer version.
    """
    return _config(_read_settings(folder))


def _read_settings(folder: Path) -> dict[str, Any]:
    """As they stand in the file, with the version of the format."""
    path = folder / CONFIG
    try:
        settings = read_json(path)
    except (OSError, ValueError) as error:
        raise AdapterError(f"{path} is damaged: {reason(error)}") from error
    if not isinstance(settings, dict):
        raise AdapterError(f"{path} is damaged: it holds no table of settings.")
    check_version(settings.get(VERSION, 1), path, AdapterError)
    if STAGE1 in settings and not _BESIDE.fullmatch(str(settings[STAGE1])):
        raise AdapterError(
            f"{path} names {settings[STAGE1]!r} as its stage-1 adapter; it can be a folder beside it, such as ../base."
        )
    return settings


def _config(settings: Mapping[str, Any]) -> CCMConfig:
    return CCMConfig.from_dict({name: value for name, value in settings.items() if name not in (VERSION, STAGE1)})


def with_rule(config: CCMConfig, rule: str | None = None, **changes: Any) -> CCMConfig:
    """The config for running an adapter under another rule, where that makes sense.

    Any adapter runs under rules that compress nothing (their LoRA is never active); others only under its own rule
    or one that names it in ``Rule.adapters``. See :meth:`SavedAdapter.tensors_for`.

    Raises:
        ConfigError: on an unknown rule, one that the adapter was not trained for, or another N.
    """
    (least, most), wanted_n = config.n_tok_range, changes.get("n_tok", config.n_tok)
    if not least <= wanted_n <= most:
        trained = f"n_tok {least}" if least == most else f"n_tok from {least} to {most}"
        raise ConfigError(f"The adapter was trained with {trained}; it cannot run with {wanted_n}.")
    if wanted_n != config.n_tok:
        changes |= {"min_n_tok": least, "max_n_tok": most}
    if rule is None or rule == config.rule:
        return replace(config, **changes)
    wanted = rule_class(rule)
    if wanted.compresses != "never" and config.rule not in wanted.adapters:
        fits = [r.name for r in RULES.values() if r.compresses == "never" or config.rule in r.adapters]
        raise ConfigError(
            f"The adapter was trained for the rule {config.rule!r} and cannot run as {rule!r}; "
            f"it runs as {', '.join(sorted({config.rule, *fits}))}."
        )
    return replace(config, rule=rule, **{"rule_options": {}, **changes})


def copy_tensors(tensors: Mapping[str, Tensor], own: Mapping[str, Tensor], where: str) -> None:
    """Copy an adapter's tensors into a model's ``own`` of the same names.

    Raises:
        AdapterError: when a tensor is missing, unknown, of another shape, of integers, or not finite; nothing
            is then copied.
    """
    missing, unknown = own.keys() - tensors.keys(), tensors.keys() - own.keys()
    if missing or unknown:
        raise AdapterError(f"{where} does not fit the model: missing {listed(missing)}, unknown {listed(unknown)}.")
    for name, tensor in tensors.items():
        shapes = tuple(tensor.shape), tuple(own[name].shape)
        if shapes[0] != shapes[1]:
            raise AdapterError(f"{where}: {name} has shape {shapes[0]}, the model {shapes[1]}.")
        if not tensor.is_floating_point():
            raise AdapterError(f"{where}: {name} is in {tensor.dtype}, the model in {own[name].dtype}.")
        if not tensor.isfinite().all():
            raise AdapterError(f"{where}: {name} holds values that are not finite.")
    with torch.no_grad():
        for name, tensor in tensors.items():
            own[name].copy_(tensor)


def check_fit(tensors: Mapping[str, Tensor], base: PreTrainedModel, where: str) -> None:
    """Refuse an adapter that was made for a base of other sizes; see :func:`copy_tensors` for single tensors.

    Raises:
        AdapterError: with hidden size, layers or projections of both.
    """
    lora = [name.split(".") for name in tensors if ".lora_A." in name]
    targets, wanted = {name[-3] for name in lora}, {*PROJECTIONS[base.config.model_type]}
    compared: dict[str, tuple[Any, Any]] = {}
    if (comp := tensors.get("comp_embeddings.weight")) is not None and comp.ndim == 2:
        compared["hidden size"] = comp.shape[1], base.get_input_embeddings().weight.shape[1]
    if lora:  # an adapter may consist of its embeddings alone
        layers = len({number for name in lora for number in name if number.isdigit()})
        compared["layers"] = layers, base.config.get_text_config().num_hidden_layers
        compared["projections"] = ", ".join(sorted(targets)), ", ".join(sorted(wanted))
    for what, (ours, theirs) in compared.items():
        if ours != theirs:
            name = base.name_or_path or type(base).__name__
            raise AdapterError(
                f"{where} does not fit {name}: the adapter's {what}: {ours}, the model's: {theirs}. "
                "Load it on the model that it was trained on."
            )


@dataclass(frozen=True)
class BaseFacts:
    """What tells a base from others.

    Attributes:
        name: what it is called in messages.
        fingerprint: see :func:`ccm.engine.fingerprint.fingerprint_base`.
        vocab_size: rows of its table of embeddings.
        signs: (up to 8,192,) uint8, see :func:`ccm.engine.fingerprint.pack_signs`.
        settings: see :func:`ccm.engine.fingerprint.effective_settings`.
        stage1: fingerprint of the stage-1 adapter in its weights; empty where there is none.
    """

    name: str
    fingerprint: str
    vocab_size: int
    signs: Tensor
    settings: Mapping[str, Any]
    stage1: str = ""


def check_base(adapter: SavedAdapter, base: BaseFacts, where: str, *, strict: bool = False) -> None:
    """Refuse an adapter that was trained on another base, where it knows its own.

    A relative of its base, quantized or fine-tuned, is one of the same settings of which up to
    :data:`ccm.engine.fingerprint.RELATED` of the sampled signs differ: it is taken, and a warning says so.

    Args:
        adapter: as it was saved.
        base: what it is to run on.
        where: the adapter is, for messages.
        strict: refuse relatives, too.

    Raises:
        AdapterError: with what both have.
    """
    config, signs, settings = adapter.config, adapter.base_signs, adapter.base_settings
    if config.base_vocab_size not in (None, base.vocab_size):
        raise _another_base(config, base, where, f"vocabulary size {config.base_vocab_size}", str(base.vocab_size))
    if not config.base_fingerprint or config.base_fingerprint == base.fingerprint:
        return
    stage1 = adapter.stage1.fingerprint if adapter.stage1 else ""
    if stage1 != base.stage1:
        raise _another_base(config, base, where, f"stage-1 adapter {stage1 or None}", str(base.stage1 or None))
    for name in sorted({*(settings or base.settings), *base.settings}):
        ours, theirs = (settings or base.settings).get(name), base.settings.get(name)
        if ours != theirs:
            raise _another_base(config, base, where, f"{name} {ours}", str(theirs))
    share = 1.0 if signs is None or settings is None else flipped(signs, base.signs)
    if share > RELATED or (share and strict):
        told = "" if share == 1 else f" ({share:.1%} of the signs differ)"
        raise _another_base(config, base, where, f"fingerprint {config.base_fingerprint}", base.fingerprint + told)
    if share:
        logger.warning(
            f"{base.name} is a quantized or fine-tuned relative of the base that {where} was trained on: {share:.1%} "
            "of signs differ."
        )


def _another_base(config: CCMConfig, base: BaseFacts, where: str, ours: str, theirs: str) -> AdapterError:
    return AdapterError(
        f"The adapter {where} belongs to another base model ({config.base_model!r}, {ours}), but {base.name} has "
        f"{theirs}; load it on the model it was trained on."
    )


def base_named(source: str | Path) -> str | None:
    """Where an adapter or a plain LoRA says that its base is; None where it does not.

    Raises:
        AdapterError: when it cannot be read.
    """
    if is_plain_lora(source):
        return read_stage1(Path(source)).settings.get("base_model_name_or_path") or None
    folder = find_adapter(source)
    return base_of(folder, read_config(folder))


def base_of(folder: Path, config: CCMConfig) -> str:
    """Where the base of an adapter is: a folder that the config names from the adapter's own, or what else it names.

    Raises:
        AdapterError: when it names none.
    """
    if not config.base_model:
        raise AdapterError(
            f"{folder} does not name its base model; say which with model=BASE, or base=BASE to merge it."
        )
    near = folder / config.base_model
    return str(near) if near.is_dir() else config.base_model


def _read_weights(path: Path) -> dict[str, Tensor]:
    try:
        return load_tensors(path)[0]
    except (OSError, SafetensorError) as error:
        raise AdapterError(f"{path} is not a whole safetensors file ({reason(error)}).") from error
    except MemoryError as error:
        raise AdapterError(f"{path} is larger than the memory of this machine.") from error


def read_plain_lora(folder: Path) -> PlainLoRA:
    """Read an adapter folder of PEFT or of the authors; pickled checkpoints are read as tensors only, never executed.

    Raises:
        AdapterError: when the folder is no such adapter, a file did not arrive whole, or a checkpoint holds more than
            floating-point tensors of a LoRA and of COMP embeddings.
    """
    if not folder.is_dir():
        raise AdapterError(f"There is no folder {folder}; name one that holds a LoRA.")
    if (folder / CONFIG).is_file():
        raise AdapterError(
            f"{folder} is an adapter of ccm, not a plain LoRA: load it as it is, with adapter={folder}; a training "
            f"begins with it by init_adapter={folder}."
        )
    if not (folder / PEFT_CONFIG).is_file():
        raise AdapterError(f"{folder} holds no {PEFT_CONFIG}; it is not a LoRA adapter.")
    settings = _read_plain_settings(folder / PEFT_CONFIG)
    safe = [p for p in (folder / "adapter_model.safetensors", folder / "model.safetensors") if p.is_file()]
    raw = _read_weights(safe[0]) if safe else _read_pickled(folder / "pytorch_model.bin")
    if not isinstance(raw, dict) or not all(isinstance(value, Tensor) for value in raw.values()):
        raise AdapterError(f"The weights in {folder} are not a table of tensors by name.")
    tensors = {_our_name(name): tensor for name, tensor in raw.items()}
    rows = [name for name in tensors if name.endswith("comp_embeddings.weight")]
    if len(tensors) < len(raw) or len(rows) > 1:
        raise AdapterError(f"{folder} holds the same tensor under several names: {listed(raw)}.")
    if whole := [f"{name} ({tensor.dtype})" for name, tensor in tensors.items() if not tensor.is_floating_point()]:
        raise AdapterError(f"{folder} holds {listed(whole)}; allowed: float32, float16, bfloat16.")
    comp = tensors.pop(rows[0]) if rows else None
    unknown = [name for name in tensors if ".lora_A." not in name and ".lora_B." not in name]
    if unknown:
        raise AdapterError(f"{folder} holds tensors that are no LoRA: {listed(unknown)}.")
    return PlainLoRA(settings, tensors, comp)


def _our_name(name: str) -> str:
    """A tensor's name from the base model down, whichever version of PEFT or of the authors' code wrote it."""
    name = re.sub(r"(lora_[AB])\.default\.", r"\1.", name.removeprefix("base_model.model."))
    return name.replace("gist_embeddings", "comp_embeddings")


def _read_plain_settings(path: Path) -> dict[str, Any]:
    try:
        settings = read_json(path)
    except (OSError, ValueError) as error:
        raise AdapterError(f"{path} is damaged: {reason(error)}") from error
    missing = [
        name for name in ("r", "lora_alpha", "target_modules") if not isinstance(settings, dict) or name not in settings
    ]
    if missing:
        raise AdapterError(f"{path} is not the configuration of a LoRA: it lacks {missing}.")
    base = settings.get("base_model_name_or_path") or ""
    if not isinstance(base, str) or "\0" in base:
        raise AdapterError(f"{path} is damaged: it names the base model {base!r}, which is no folder and no Hub id.")
    return settings


def read_stage1(folder: Path) -> PlainLoRA:
    """A stage-1 adapter: a plain LoRA for all tokens.

    Raises:
        AdapterError: as :func:`read_plain_lora`, and when the folder holds a compression adapter instead.
    """
    lora = read_plain_lora(folder)
    if lora.comp is not None:
        raise AdapterError(
            f"{folder} is a compression adapter of the authors, not a stage-1 adapter; it must not act on all tokens. "
            "Make it one of ours first, with `ccm adapters import`."
        )
    return lora


def _read_pickled(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        parts = sorted(p.name for p in path.parent.glob("*.part"))
        arrived = f" What is there did not arrive whole: {parts}; download it again." if parts else ""
        raise AdapterError(f"{path.parent} holds no weights (model.safetensors or pytorch_model.bin).{arrived}")
    with path.open("rb") as file:
        zipped = file.read(2) == b"PK"
    if zipped and not zipfile.is_zipfile(path):  # its table of contents stands at the end
        raise AdapterError(f"{path} is not whole, its end is missing; it was not loaded. Download it again.")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise AdapterError(f"{path} cannot be read: {reason(error)}.") from error
    except MemoryError as error:
        raise AdapterError(f"{path} is larger than the memory of this machine.") from error
    except (
        Exception
    ) as error:  # the unpickler follows damaged bytes wherever they lead: KeyError, TypeError, struct.error
        kind = type(error).__name__
        raise AdapterError(f"{path} is damaged or holds more than tensors, and was not loaded ({kind}).") from error
