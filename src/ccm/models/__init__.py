"""Models: which there are, where they come from, the cache that holds them, and how they are loaded with adapters."""
