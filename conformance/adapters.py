"""The group of adapters: an adapter of the authors, imported and loaded as users do, gives the recorded numbers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from transformers import LlamaForCausalLM

from ccm.adapters.importing import Choices, read_theirs
from ccm.engine.adapter_files import write_adapter
from ccm.engine.decoder import CCMModel
from conformance.goldens import Differences, Goldens
from conformance.parallel import case_differences, config_of

_ABLATIONS = ("_uncond_lora", "_basepos")  # settings of a recorded run, which its adapter does not hold


def check_adapters(goldens: Goldens) -> Iterator[tuple[str, Differences]]:
    """Every recorded case of every adapter folder; a stage-1 adapter by itself is imported merged."""
    cases = goldens.json("manifest_parallel.json")["cases"]
    for folder in sorted((goldens.folder / "adapters").iterdir()):
        for case, entry in cases.items():
            if entry["adapter"] == folder.name.removesuffix("_safetensors") and not case.endswith(_ABLATIONS):
                yield (
                    f"{folder.name}: {case}",
                    case_differences(goldens, case, entry, _imported(goldens, folder, case, entry)),
                )


def _imported(goldens: Goldens, folder: Path, case: str, entry: dict[str, Any]) -> CCMModel:
    config = config_of(case, entry)
    base, stage1 = goldens.folder / "tiny-llama", entry["merged_base_adapter"]
    choices = (
        Choices(base)
        if config.rule == "full"
        else Choices(base, config.rule, config.recurrent, config.sink, None, stage1 and folder.parent / stage1)
    )
    with TemporaryDirectory() as place:
        write_adapter(read_theirs(folder, choices).adapter, place)
        stock = LlamaForCausalLM.from_pretrained(base)
        stock.generation_config.eos_token_id = None
        return CCMModel.from_pretrained(place, stock)
