"""Compressed context memory for language models."""
