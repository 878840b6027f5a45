"""The built-in model: a tiny one that ships with the package, its dialogues, and how it is built and measured."""

from pathlib import Path

from ccm.config import TurnFormat

NAME = "builtin"
WEIGHTS = Path(__file__).parent / "weights"
TURNS = TurnFormat(separator="<|user|>", reply_separator="<|assistant|>")
