"""Compressed context memory for language models: the public names, each imported when it is first used."""

from __future__ import annotations

import logging
from importlib import import_module
from typing import TYPE_CHECKING, Any

from ccm.stack import check_versions

if TYPE_CHECKING:
    from ccm.config import CCMConfig as CCMConfig
    from ccm.config import LoRASettings as LoRASettings
    from ccm.config import TurnFormat as TurnFormat
    from ccm.conversation import Conversation as Conversation
    from ccm.encoder_memory import EncoderMemory as EncoderMemory
    from ccm.errors import CCMError as CCMError
    from ccm.evictions import StreamSettings as StreamSettings
    from ccm.layout import Layout as Layout
    from ccm.layout import Sample as Sample
    from ccm.layout import Step as Step
    from ccm.layout import build_layout as build_layout
    from ccm.loading import load as load
    from ccm.memory import Memory as Memory
    from ccm.model import CCMModel as CCMModel
    from ccm.rules import Rule as Rule
    from ccm.sampling import Sampling as Sampling
    from ccm.seq2seq import CCMEncoderDecoder as CCMEncoderDecoder
    from ccm.streaming import StreamingMemory as StreamingMemory
    from ccm.window import WindowConversation as WindowConversation

__version__ = "0.1.0"

_HOME = {
    "CCMConfig": "config",
    "CCMEncoderDecoder": "seq2seq",
    "CCMError": "errors",
    "CCMModel": "model",
    "Conversation": "conversation",
    "EncoderMemory": "encoder_memory",
    "Layout": "layout",
    "LoRASettings": "config",
    "Memory": "memory",
    "Rule": "rules",
    "Sample": "layout",
    "Sampling": "sampling",
    "Step": "layout",
    "StreamSettings": "evictions",
    "StreamingMemory": "streaming",
    "TurnFormat": "config",
    "WindowConversation": "window",
    "build_layout": "layout",
    "load": "loading",
}

__all__ = ["__version__", *_HOME]

check_versions()
for _name in ("torchao", "bitsandbytes", "torch.utils._pytree"):  # transformers and PEFT import them wherever they are
    if not logging.getLogger(_name).level:  # else warnings of parts that are lacking there come before any answer
        logging.getLogger(_name).setLevel(logging.ERROR)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'ccm' has no attribute {name!r}")
    return getattr(import_module(f"ccm.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
