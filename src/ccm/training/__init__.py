"""Training compression adapters: a recipe selects data and a stage; the loop trains it and writes an adapter folder."""
