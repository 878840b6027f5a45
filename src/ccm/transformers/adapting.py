"""Stock models that transformers has loaded, under an adapter."""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedModel

from ccm.core.errors import ConfigError
from ccm.engine.decoder import CCMModel
from ccm.models.locate import base_name
from ccm.models.shipped import shipped_adapter

_HELD = "_ccm_models"  # in the base's __dict__: as an attribute of its own, the base would take the model for a part


def under_adapter(base: PreTrainedModel, adapter: str | Path | None) -> CCMModel:
    """A stock model under an adapter; it is changed in place, and asked for again it is the same.

    Args:
        base: the model.
        adapter: folder or Hub id; None takes one that ships for the model.

    Raises:
        ConfigError: when no adapter ships for the model, or it has another adapter already.
        AdapterError: when the adapter is absent, damaged, or of another base model.
    """
    if adapter is None and (adapter := shipped_adapter(base_name(base.name_or_path), None)) is None:
        raise ConfigError(
            f"No adapter ships for {base.name_or_path}; name one, as adapter=FOLDER. To run without one, give the "
            "pipeline what ccm.load(..., rule='full') returns, as model and tokenizer."
        )
    held, name = vars(base).setdefault(_HELD, {}), str(adapter)
    key = str(Path(name).resolve()) if Path(name).is_dir() else name  # a folder may be spelt in several ways
    if key not in held:
        held[key] = CCMModel.from_pretrained(adapter, base)
    return held[key]
