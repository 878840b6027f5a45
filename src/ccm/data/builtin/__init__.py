"""The data of the built-in model: dialogues that tell facts and ask for them, and how recall of them is measured."""
