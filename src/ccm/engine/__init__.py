"""The engine: stock models under a rule of memory, in the parallel pass and online."""
