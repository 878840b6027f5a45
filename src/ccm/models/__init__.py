"""Real models to fetch and keep: which there are, how their files are had, and the cache that holds them."""
