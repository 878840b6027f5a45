"""Benchmarks of the engine against stock transformers and PEFT: ``python -m benchmarks``, or ``make bench``."""
