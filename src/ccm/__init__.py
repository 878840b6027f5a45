"""Compressed context memory for language models: the public names, each imported when it is first used."""

from __future__ import annotations

import logging
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ccm.chat.conversation import Conversation as Conversation
    from ccm.chat.turns import Turns as Turns
    from ccm.chat.window import WindowConversation as WindowConversation
    from ccm.core.config import CCMConfig as CCMConfig
    from ccm.core.config import LoRASettings as LoRASettings
    from ccm.core.config import TurnFormat as TurnFormat
    from ccm.core.errors import AdapterError as AdapterError
    from ccm.core.errors import CCMError as CCMError
    from ccm.core.errors import ConfigError as ConfigError
    from ccm.core.errors import DataError as DataError
    from ccm.core.errors import InputError as InputError
    from ccm.core.errors import IrreversibleError as IrreversibleError
    from ccm.core.errors import MemoryFileError as MemoryFileError
    from ccm.core.errors import PositionError as PositionError
    from ccm.core.errors import RowError as RowError
    from ccm.core.errors import StackError as StackError
    from ccm.core.errors import TrainingError as TrainingError
    from ccm.core.errors import UnsupportedModelError as UnsupportedModelError
    from ccm.core.rules import Rule as Rule
    from ccm.engine.decoder import CCMModel as CCMModel
    from ccm.engine.layout import Layout as Layout
    from ccm.engine.layout import Sample as Sample
    from ccm.engine.layout import Step as Step
    from ccm.engine.layout import build_layout as build_layout
    from ccm.engine.memory import Memory as Memory
    from ccm.engine.sampling import Sampling as Sampling
    from ccm.engine.t5.memory import EncoderMemory as EncoderMemory
    from ccm.engine.t5.seq2seq import CCMEncoderDecoder as CCMEncoderDecoder
    from ccm.models.load import load as load
    from ccm.streams.evictions import StreamSettings as StreamSettings
    from ccm.streams.stream import StreamingMemory as StreamingMemory

__version__ = "0.1.0"

_HOME = {  # where each public name lives
    "AdapterError": "core.errors",
    "CCMConfig": "core.config",
    "CCMEncoderDecoder": "engine.t5.seq2seq",
    "CCMError": "core.errors",
    "CCMModel": "engine.decoder",
    "ConfigError": "core.errors",
    "Conversation": "chat.conversation",
    "DataError": "core.errors",
    "EncoderMemory": "engine.t5.memory",
    "InputError": "core.errors",
    "PositionError": "core.errors",
    "IrreversibleError": "core.errors",
    "Layout": "engine.layout",
    "LoRASettings": "core.config",
    "Memory": "engine.memory",
    "MemoryFileError": "core.errors",
    "RowError": "core.errors",
    "Rule": "core.rules",
    "Sample": "engine.layout",
    "Sampling": "engine.sampling",
    "StackError": "core.errors",
    "Step": "engine.layout",
    "StreamSettings": "streams.evictions",
    "StreamingMemory": "streams.stream",
    "TrainingError": "core.errors",
    "TurnFormat": "core.config",
    "Turns": "chat.turns",
    "UnsupportedModelError": "core.errors",
    "WindowConversation": "chat.window",
    "build_layout": "engine.layout",
    "load": "models.load",
}

__all__ = ["__version__", *_HOME]

for _name in ("torchao", "bitsandbytes", "torch.utils._pytree"):  # transformers and PEFT import them wherever they are
    if not logging.getLogger(_name).level:  # else warnings of parts that are lacking there come before any answer
        logging.getLogger(_name).setLevel(logging.ERROR)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'ccm' has no attribute {name!r}")
    return getattr(import_module(f"ccm.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
