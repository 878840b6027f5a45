"""GGUF files as base models. transformers reads them slowly, so the cache keeps a dequantized copy of each."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from ccm.core.errors import ConfigError
from ccm.core.extras import needs
from ccm.core.hub import why
from ccm.core.processes import get_logger
from ccm.models.cache import cache_folder, keep

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ENDING = ".gguf"
_BLOCKS, _BLOCK = 64, 1 << 17  # of a file, at equal distances: they and its size identify its copy
_LARGE = 10**9  # parameters from which a copy is in bfloat16: in float32 it would take several GB
_log = get_logger(__name__)


def gguf_file(source: str | Path) -> Path | str | None:
    """The GGUF file that a model's name or path means; None if it means something else.

    It is a local file, the only GGUF file in a folder without a transformers model, or a file on the Hub such as
    ``OWNER/NAME/FILE.gguf``, which is returned as text.

    Raises:
        ConfigError: if the folder holds several GGUF files.
    """
    path = Path(source)
    if path.is_dir():
        found = sorted(file for file in path.iterdir() if file.suffix.lower() == ENDING)
        if not found or (path / "config.json").is_file():
            return None
        if len(found) > 1:
            names = ", ".join(file.name for file in found)
            raise ConfigError(f"{source} holds several GGUF files ({names}); name one of them.")
        return found[0]
    if not str(source).lower().endswith(ENDING):
        return None
    return path if path.exists() or str(source).count("/") < 2 or path.is_absolute() else str(source)


def copy_of(source: Path | str, **hub: Any) -> Path:
    """The folder with the dequantized copy of a GGUF file; the first call makes the copy.

    Args:
        source: as :func:`gguf_file` returns it.
        hub: options of the Hub, such as ``revision``.

    Raises:
        ConfigError: if there is no such file, it cannot be read, or the package that reads it is not installed.
    """
    needs_reader(Path(source).name)
    file = source if isinstance(source, Path) else _from_hub(source, **hub)
    if not file.is_file():
        raise ConfigError(f"There is no file {file}; name a GGUF file, or a folder that holds one.")
    folder = cache_folder() / "gguf" / f"{file.stem}-{_identity(file)}"
    if not (folder / "config.json").is_file():
        _log.warning(f"Converting {file.name} once, which takes about a minute; the copy is kept in {folder}.")
        keep(folder, lambda target: dequantize(file, target))
    return folder


def needs_reader(name: str) -> None:
    """Check, before anything is downloaded, that the package which reads GGUF files is installed.

    Raises:
        ConfigError: if it is not.
    """
    needs("gguf", extra="gguf", what=f"{name}, a GGUF file,")


def dequantize(file: Path, target: Path) -> None:
    """Convert a GGUF file to a transformers model with its tokenizer, in the folder ``target``.

    Raises:
        ConfigError: if the file cannot be read.
    """
    import torch  # imported here, because other models are located without torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        read: Any = {"pretrained_model_name_or_path": file.parent, "gguf_file": file.name}
        model = AutoModelForCausalLM.from_pretrained(**read, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(**read)
    except MemoryError:
        raise
    except Exception as error:  # the reader raises errors of any type on damaged files and unknown families
        reason = next(iter(str(error).splitlines()), "no reason given")
        raise ConfigError(f"{file} cannot be read as a GGUF model: {reason} ({type(error).__name__})") from error
    _plain(model).save_pretrained(target)
    tokenizer.save_pretrained(target)


def _plain(model: PreTrainedModel) -> PreTrainedModel:
    """A copy of the model without marks of quantization, which would keep transformers from saving it."""
    import torch

    config = model.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    dtype = torch.bfloat16 if model.num_parameters() >= _LARGE else torch.float32
    config.dtype = dtype
    plain = type(model)(config).to(dtype)
    plain.load_state_dict(model.state_dict())
    plain.tie_weights()
    plain.generation_config = model.generation_config
    return plain


def _identity(file: Path) -> str:
    """A digest of 12 hex digits over a file's size and blocks from its beginning to its end."""
    size = file.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with file.open("rb") as opened:
        for number in range(_BLOCKS):
            opened.seek(max(size - _BLOCK, 0) * number // (_BLOCKS - 1))
            digest.update(opened.read(_BLOCK))
    return digest.hexdigest()[:12]


def _from_hub(source: str, **hub: Any) -> Path:
    *repository, name = source.split("/", 2)
    try:
        return Path(hf_hub_download("/".join(repository), name, **hub))
    except (HFValidationError, LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise ConfigError(
            f"There is no file {source}, neither here nor on the Hub: {why(error, '/'.join(repository))}"
        ) from error
