"""How the built-in model is made, and its figures measured."""
