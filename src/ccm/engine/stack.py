"""The versions, names and arguments that the seams need from the libraries under them.

Versions are checked before any module of the engine is imported. :mod:`ccm.engine.seams` tries what the libraries do.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from packaging.version import Version

from ccm.core.errors import StackError

Seam = tuple[str, str, tuple[str, ...]]  # module, the path of a function in it, the arguments that it must take

OLDEST = {  # the suite passes with these: constraints-oldest.txt, run by `make test-versions`
    "torch": "2.11.0",
    "transformers": "5.3.0",
    "peft": "0.18.0",
    "tokenizers": "0.22.1",
    "safetensors": "0.4.5",
    "accelerate": "1.1.0",
    "huggingface_hub": "1.3.0",
}
SEAMS: tuple[Seam, ...] = (
    ("transformers", "AttentionInterface.register", ()),
    ("transformers", "AttentionMaskInterface.register", ()),
    ("transformers", "PreTrainedModel.set_attn_implementation", ()),
    ("transformers", "DynamicCache.update", ("key_states", "value_states", "layer_idx")),
    ("transformers.cache_utils", "DynamicLayer.update", ("key_states", "value_states")),
    ("transformers.integrations.sdpa_attention", "sdpa_attention_forward", ("query", "key", "value", "attention_mask")),
    ("transformers.masking_utils", "sdpa_mask", ("kv_length", "mask_function")),
    ("transformers.masking_utils", "eager_mask", ("kv_length", "mask_function")),
    ("peft", "LoraConfig._register_custom_module", ()),
    ("peft", "inject_adapter_in_model", ("peft_config", "model")),
    ("peft.tuners.lora.layer", "Linear.merge", ()),
)
ENCODER_OLDEST = {"transformers": "5.20.0"}  # before, encoders do not call a registered attention function
ENCODER_SEAMS: tuple[Seam, ...] = (
    (
        "transformers.models.t5.modeling_t5",
        "T5Attention._relative_position_bucket",
        ("relative_position", "bidirectional", "num_buckets", "max_distance"),
    ),
)


def check_versions(oldest: Mapping[str, str] = OLDEST, what: str = "ccm") -> None:
    """Refuse libraries that are older than ``what`` needs, without importing them.

    Raises:
        StackError: with the installed versions and the versions that are needed.
    """
    installed = versions()
    if old := [n for n, least in oldest.items() if installed[n] and Version(installed[n]) < Version(least)]:
        needed = ", ".join(f"{name} {oldest[name]}" for name in old)
        raise refusal(f"{what} needs at least {needed}")


def check_seams(seams: Sequence[Seam] = SEAMS) -> None:
    """Refuse libraries without the functions and arguments that the seams need.

    Raises:
        StackError: with the missing name and the installed versions.
    """
    for module, path, arguments in seams:
        try:
            found: Any = import_module(module)
            for name in path.split("."):
                found = getattr(found, name)
            lacks = [name for name in arguments if name not in inspect.signature(found).parameters]
        except (ImportError, AttributeError) as error:
            raise refusal(f"{module}.{path} is not there any more") from error
        if lacks:
            raise refusal(f"{module}.{path} does not take {', '.join(lacks)} any more")


def check_encoders() -> None:
    """Refuse libraries with which encoder-decoders do not run.

    Raises:
        StackError: see :func:`check_versions` and :func:`check_seams`.
    """
    check_versions(ENCODER_OLDEST, "T5")
    check_seams(ENCODER_SEAMS)


def versions() -> dict[str, str]:
    """The installed version of each library; empty if it is not installed."""
    found = {}
    for name in OLDEST:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = ""
    return found


def refusal(what: str) -> StackError:
    """The error for libraries that do not work, with the installed versions and the way out."""
    installed = ", ".join(f"{name} {number or '(none)'}" for name, number in versions().items())
    return StackError(f"{what}; installed: {installed}. Install tested versions: pip install -c constraints.txt -e .")
