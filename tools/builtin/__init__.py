"""Building the built-in model, and measuring its figures."""
