"""Adapters on disk: folders of our own, and plain LoRAs of PEFT and of the authors.

    adapter/  ccm_config.json  ccm_adapter.safetensors  [base_adapter/]      base_adapter: a plain PEFT LoRA, stage 1

Several adapters may share a stage-1 adapter in a folder beside them; the settings of each then name that folder.

The manifest of the tensors holds digests of the settings and of the stage-1 adapter: a reader refuses files that were
not saved together. There is no ``adapter_config.json``, so that plain PEFT, which would run the LoRA on every token,
finds nothing to load.
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
from torch import Tensor
from transformers import PreTrainedModel

from ccm.core.adapter_folders import (
    CONFIG,
    PEFT_CONFIG,
    STAGE1,
    VERSION,
    base_of,
    config_of,
    find_adapter,
    is_plain_lora,
    read_config,
    read_settings,
    read_table,
)
from ccm.core.config import CCMConfig
from ccm.core.errors import AdapterError, ConfigError, listed, reason
from ccm.core.files import (
    FORMAT_VERSION,
    SafetensorError,
    as_path,
    load_tensors,
    locking,
    save_json,
    save_tensors,
    writing,
)
from ccm.core.processes import get_logger
from ccm.core.rules import RULES, rule_class
from ccm.core.tensor_files import digest, read_file, write_file
from ccm.engine.families import PROJECTIONS
from ccm.engine.fingerprint import RELATED, flipped
from ccm.engine.lora import PlainLoRA

logger = get_logger(__name__)
KIND, SIGNS, SETTINGS = "ccm_adapter", "base_signs", "base_settings"
WEIGHTS = "ccm_adapter.safetensors"


@dataclass(frozen=True)
class SavedAdapter:
    """The contents of an adapter folder.

    Attributes:
        config: the settings, with the fingerprint of the base model.
        tensors: all trained tensors by name, on the CPU.
        stage1: the plain LoRA to merge into the base first, or None.
        base_signs: (up to 8,192,) uint8 of :func:`ccm.engine.fingerprint.pack_signs`; None in old folders.
        base_settings: result of :func:`ccm.engine.fingerprint.effective_settings`; None in old folders.
    """

    config: CCMConfig
    tensors: dict[str, Tensor]
    stage1: PlainLoRA | None
    base_signs: Tensor | None = None
    base_settings: Mapping[str, Any] | None = None

    @property
    def for_encoder(self) -> bool:
        """Whether it belongs to an encoder-decoder, by the names of its tensors; conversations need a decoder."""
        stage1 = self.stage1.tensors if self.stage1 else {}
        return any(name.startswith("encoder.") for name in (*self.tensors, *stage1))

    def tensors_for(self, rule: str) -> dict[str, Tensor]:
        """The tensors for a model under ``rule``: those of the adapter's rule are left out if it is another."""
        return {n: t for n, t in self.tensors.items() if rule == self.config.rule or not n.startswith("rule.")}


def write_adapter(adapter: SavedAdapter, folder: str | Path, *, shared: str = "") -> None:
    """Write an adapter folder: each file atomically, the settings last. A folder without settings is incomplete.

    Args:
        adapter: the contents.
        folder: a new folder, or one that holds an adapter already.
        shared: name of a folder beside it that holds the stage-1 adapter, for several adapters; if empty, the
            stage-1 adapter is written into the folder itself.

    Raises:
        AdapterError: when ``folder`` is no path or cannot be written, or the shared folder holds another stage-1
            adapter.
    """
    target = as_path(folder, AdapterError)
    with writing(target, AdapterError, "Name another folder for the adapter."):
        target.mkdir(parents=True, exist_ok=True)
        with locking(target):
            _write(adapter, target, shared and f"../{shared}")


def _write(adapter: SavedAdapter, target: Path, beside: str) -> None:
    stage1 = read_stage1(target / beside) if beside else adapter.stage1  # the shared copy may name the base otherwise
    if beside and (adapter.stage1 is None or stage1 is None or stage1.fingerprint != adapter.stage1.fingerprint):
        raise AdapterError(f"{target / beside} does not hold the stage-1 adapter of the adapter for {target}.")
    if adapter.stage1 and not beside:
        (target / STAGE1).mkdir(exist_ok=True)
        named = {f"base_model.model.{name}": tensor for name, tensor in adapter.stage1.tensors.items()}
        save_tensors(target / STAGE1 / "adapter_model.safetensors", named, {"format": "pt"})
        save_json(target / STAGE1 / PEFT_CONFIG, adapter.stage1.settings)
    elif (target / CONFIG).is_file() and (target / STAGE1).is_dir():  # left from the adapter that this one replaces
        shutil.rmtree(target / STAGE1)
    signs = {} if adapter.base_signs is None else {SIGNS: adapter.base_signs}
    settings = {VERSION: FORMAT_VERSION, **adapter.config.to_dict(), **({STAGE1: beside} if beside else {})}
    manifest: dict[str, Any] = {**_digests(settings, stage1), SETTINGS: adapter.base_settings}
    write_file(target / WEIGHTS, KIND, {**adapter.tensors, **signs}, manifest)
    save_json(target / CONFIG, settings)


def read_adapter(folder: Path) -> SavedAdapter:
    """Read an adapter folder of our own, as :func:`find_adapter` returns it.

    Raises:
        AdapterError: when it is damaged, incomplete or of a newer version, or holds files of several adapters.
    """
    with locking(folder, shared=True):
        settings = read_settings(folder)
        config = config_of(settings)
        place = folder / settings.get(STAGE1, STAGE1)
        stage1 = read_stage1(place) if STAGE1 in settings or place.is_dir() else None
        if not (folder / WEIGHTS).exists():
            raise AdapterError(f"{folder / WEIGHTS} is missing; the adapter was not copied whole.")
        tensors, manifest = read_file(folder / WEIGHTS, KIND, AdapterError, bare=True)
    digests = _digests(settings, stage1)
    if manifest[VERSION] == 1:
        digests = {STAGE1: stage1.fingerprint if stage1 else ""}
        manifest = {**digests, **manifest}  # the oldest manifests say nothing about stage 1
        if settings.get(VERSION, 1) != 1:
            raise AdapterError(f"{folder / CONFIG} was not saved with the tensors beside it, which are of version 1.")
    if manifest.get(STAGE1) != digests[STAGE1]:
        was, now = (str(found)[:16] or "(none)" for found in (manifest.get(STAGE1), digests[STAGE1]))
        raise AdapterError(
            f"{folder} was saved with the stage-1 adapter {was} in {settings.get(STAGE1, STAGE1)}, but there is {now}; "
            "the adapter was not copied whole."
        )
    if any(manifest.get(name) != value for name, value in digests.items()):
        raise AdapterError(
            f"{folder / CONFIG} and {WEIGHTS} were not saved together: one is of another adapter, or was changed. Take "
            "both from one copy; of the settings, only base_model may be changed by hand."
        )
    return SavedAdapter(config, tensors, stage1, tensors.pop(SIGNS, None), manifest.get(SETTINGS))


def _digests(settings: Mapping[str, Any], stage1: PlainLoRA | None) -> dict[str, str]:
    """Digests of the files beside the tensors, for the manifest; ``base_model`` is a hint and may change."""
    bound = {name: value for name, value in settings.items() if name not in (VERSION, "base_model")}
    return {"settings": digest({}, bound), STAGE1: digest(stage1.tensors, stage1.settings) if stage1 else ""}


def with_rule(config: CCMConfig, rule: str | None = None, **changes: Any) -> CCMConfig:
    """The settings for running an adapter under another rule, or with other settings.

    An adapter runs under its own rule, under rules that name it in ``Rule.adapters``, and under rules that compress
    nothing, where its LoRA is never active. See :meth:`SavedAdapter.tensors_for`.

    Args:
        config: the adapter's own settings.
        rule: the other rule; None keeps the adapter's.
        changes: other settings, such as ``n_tok``; the options of another rule are its defaults.

    Raises:
        ConfigError: when the rule is unknown, or the adapter was not trained for the rule or the N.
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
    """Copy an adapter's tensors into those of a model, ``own``; ``where`` names the adapter in messages.

    Raises:
        AdapterError: when a tensor is missing, unknown, of another shape, of integers, or not finite. Nothing is then
            copied.
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
    """Refuse an adapter for a base of other sizes; :func:`copy_tensors` checks single tensors.

    Raises:
        AdapterError: with the hidden size, number of layers or projections of both.
    """
    lora = [name.split(".") for name in tensors if ".lora_A." in name]
    targets, wanted = {name[-3] for name in lora}, {*PROJECTIONS[base.config.model_type]}
    compared: dict[str, tuple[Any, Any]] = {}
    if (comp := tensors.get("comp_embeddings.weight")) is not None and comp.ndim == 2:
        compared["hidden size"] = comp.shape[1], base.get_input_embeddings().weight.shape[1]
    if lora:  # an adapter may have embeddings only
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
    """The facts that tell one base model from another.

    Attributes:
        name: its name in messages.
        fingerprint: result of :func:`ccm.engine.fingerprint.fingerprint_base`.
        vocab_size: rows of its embedding table.
        signs: (up to 8,192,) uint8 of :func:`ccm.engine.fingerprint.pack_signs`.
        settings: result of :func:`ccm.engine.fingerprint.effective_settings`.
    """

    name: str
    fingerprint: str
    vocab_size: int
    signs: Tensor
    settings: Mapping[str, Any]


def check_base(adapter: SavedAdapter, base: BaseFacts, where: str, *, strict: bool = False) -> None:
    """Refuse an adapter that was trained on another base, if the adapter knows its base.

    A relative of the adapter's base, quantized or fine-tuned, has the same settings, and at most
    :data:`ccm.engine.fingerprint.RELATED` of its sampled signs differ. It is accepted with a warning. The stage-1
    adapter is not compared: an adapter that is loaded brings its own.

    Args:
        adapter: the saved adapter.
        base: the base that it should run on.
        where: names the adapter in messages.
        strict: refuse relatives too.

    Raises:
        AdapterError: with the fact that differs, of both.
    """
    config, signs, settings = adapter.config, adapter.base_signs, adapter.base_settings
    if config.base_vocab_size not in (None, base.vocab_size):
        raise _another_base(config, base, where, f"vocabulary size {config.base_vocab_size}", str(base.vocab_size))
    if not config.base_fingerprint or config.base_fingerprint == base.fingerprint:
        return
    for name in sorted({*(settings or base.settings), *base.settings}):
        ours, theirs = (settings or base.settings).get(name), base.settings.get(name)
        if ours != theirs:
            raise _another_base(config, base, where, f"{name} {ours}", str(theirs))
    share = 1.0 if signs is None or settings is None else flipped(signs, base.signs)
    if share > RELATED or (share and strict):
        differing = "" if share == 1 else f" ({share:.1%} of the signs differ)"
        raise _another_base(config, base, where, f"fingerprint {config.base_fingerprint}", base.fingerprint + differing)
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
    """The base model that an adapter or a plain LoRA names; None if a plain LoRA names none.

    Raises:
        AdapterError: when the adapter cannot be read, or is our own and names no base.
    """
    if is_plain_lora(source):
        return read_stage1(Path(source)).settings.get("base_model_name_or_path") or None
    folder = find_adapter(source)
    return base_of(folder, read_config(folder))


def read_plain_lora(folder: Path) -> PlainLoRA:
    """Read an adapter folder of PEFT or of the authors. Of a pickled checkpoint only tensors are read; no code runs.

    Raises:
        AdapterError: when the folder is no such adapter, a file is incomplete, or a checkpoint holds anything but
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
    raw = _read_weights(folder)
    if not isinstance(raw, dict) or not all(isinstance(value, Tensor) for value in raw.values()):
        raise AdapterError(f"The weights in {folder} are not a table of tensors by name.")
    tensors = {_our_name(name): tensor for name, tensor in raw.items()}
    rows = [name for name in tensors if name.endswith("comp_embeddings.weight")]
    if len(tensors) < len(raw) or len(rows) > 1:
        raise AdapterError(f"{folder} holds the same tensor under several names: {listed(raw)}.")
    if integers := [f"{name} ({tensor.dtype})" for name, tensor in tensors.items() if not tensor.is_floating_point()]:
        raise AdapterError(f"{folder} holds {listed(integers)}; allowed: float32, float16, bfloat16.")
    comp = tensors.pop(rows[0]) if rows else None
    unknown = [name for name in tensors if ".lora_A." not in name and ".lora_B." not in name]
    if unknown:
        raise AdapterError(f"{folder} holds tensors that are no LoRA: {listed(unknown)}.")
    return PlainLoRA(settings, tensors, comp)


def _our_name(name: str) -> str:
    """The name of a tensor within the base model, whichever version of PEFT or of the authors' code wrote it."""
    name = re.sub(r"(lora_[AB])\.default\.", r"\1.", name.removeprefix("base_model.model."))
    return name.replace("gist_embeddings", "comp_embeddings")


def _read_plain_settings(path: Path) -> dict[str, Any]:
    settings = read_table(path)
    if missing := [name for name in ("r", "lora_alpha", "target_modules") if name not in settings]:
        raise AdapterError(f"{path} is not the configuration of a LoRA: it lacks {missing}.")
    base = settings.get("base_model_name_or_path") or ""
    if not isinstance(base, str) or "\0" in base:
        raise AdapterError(f"{path} is damaged: it names the base model {base!r}, which is no folder and no Hub id.")
    return settings


def read_stage1(folder: Path) -> PlainLoRA:
    """Read a stage-1 adapter: a plain LoRA that acts on all tokens.

    Raises:
        AdapterError: see :func:`read_plain_lora`; also when the folder holds a compression adapter.
    """
    lora = read_plain_lora(folder)
    if lora.comp is not None:
        raise AdapterError(
            f"{folder} is a compression adapter of the authors, not a stage-1 adapter: it must not act on all tokens. "
            "Import it first, with `ccm adapters import`."
        )
    return lora


def _read_weights(folder: Path) -> Any:
    names = ("adapter_model.safetensors", "model.safetensors", "pytorch_model.bin")
    path = next((folder / name for name in names if (folder / name).is_file()), None)
    if path is None:
        parts = sorted(part.name for part in folder.glob("*.part"))
        advice = f" Download it again; these files did not arrive whole: {parts}." if parts else ""
        raise AdapterError(f"{folder} holds no weights (model.safetensors or pytorch_model.bin).{advice}")
    try:
        return _read_pickled(path) if path.suffix == ".bin" else load_tensors(path)[0]
    except SafetensorError as error:
        raise AdapterError(f"{path} is not a whole safetensors file ({reason(error)}).") from error
    except OSError as error:
        raise AdapterError(f"{path} cannot be read: {reason(error)}.") from error
    except MemoryError as error:
        raise AdapterError(f"{path} is larger than the memory of this machine.") from error


def _read_pickled(path: Path) -> Any:
    with path.open("rb") as file:
        zipped = file.read(2) == b"PK"
    if zipped and not zipfile.is_zipfile(path):  # the table of contents of a zip file is at its end
        raise AdapterError(f"{path} is not whole, its end is missing; it was not loaded. Download it again.")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, MemoryError):
        raise
    except Exception as error:  # damaged bytes make the unpickler raise anything: KeyError, TypeError, struct.error
        kind = type(error).__name__
        raise AdapterError(f"{path} is damaged or holds more than tensors, and was not loaded ({kind}).") from error
