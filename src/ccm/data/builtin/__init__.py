"""The dialogues of the built-in model: made up without end, with facts that are asked for later."""
