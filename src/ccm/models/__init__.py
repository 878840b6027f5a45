"""Models: the catalogue, downloads, the cache of models on disk, and loading a base with its adapter."""
