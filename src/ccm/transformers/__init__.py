"""For users of transformers: ``pipeline("ccm-text-generation")``, and ``model.generate(custom_generate=...)``.

Importing this module registers the pipeline.
"""

from __future__ import annotations

from pathlib import Path

from transformers import AutoModelForCausalLM
from transformers.pipelines import PIPELINE_REGISTRY

from ccm.models.builtin import WEIGHTS
from ccm.transformers.decoding import StreamDecoding, generate
from ccm.transformers.pipeline import MemoryTextGeneration

__all__ = ["CUSTOM_GENERATE", "TASK", "MemoryTextGeneration", "StreamDecoding", "generate"]

#: The name of the pipeline.
TASK = "ccm-text-generation"
#: The folder that ``generate(custom_generate=...)`` takes.
CUSTOM_GENERATE = str(Path(__file__).parent / "hub")

if TASK not in PIPELINE_REGISTRY.get_supported_tasks():
    PIPELINE_REGISTRY.register_pipeline(
        TASK,
        pipeline_class=MemoryTextGeneration,
        pt_model=AutoModelForCausalLM,
        default={"model": (str(WEIGHTS / "base"), "main")},
        type="text",
    )
