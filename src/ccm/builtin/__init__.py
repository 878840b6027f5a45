"""The built-in model: a tiny one that ships with the package, its dialogues, and how it is built and measured."""

from pathlib import Path

NAME = "builtin"
WEIGHTS = Path(__file__).parent / "weights"
