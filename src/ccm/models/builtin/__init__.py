"""The built-in model: a tiny one that ships with the package, its dialogues, and how it is built and measured."""

from pathlib import Path

from ccm.core.config import TurnFormat

NAME = "builtin"
WEIGHTS = Path(__file__).parent / "weights"
START = WEIGHTS / "base" / "start"  # COMP embeddings and gates that the base was trained with
TURNS = TurnFormat(separator="<|user|>", reply_separator="<|assistant|>")
LONGEST_TURN = 22  # tokens of what the user says at once in the dialogues that it was trained on
