"""The built-in model: a tiny model that ships with the package."""

from pathlib import Path

from ccm.core.config import TurnFormat

NAME = "builtin"
WEIGHTS = Path(__file__).parent / "weights"
START = WEIGHTS / "base" / "start"  # the COMP embeddings and gates that the base was trained with
TURNS = TurnFormat(separator="<|user|>", reply_separator="<|assistant|>")
LONGEST_TURN = 22  # the most tokens of a user turn in the training data
