"""Adapters as they come and go: imported from the authors, fused into a base, sent to the Hub."""
