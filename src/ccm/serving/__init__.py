"""A server that remembers: conversations behind the APIs that clients already speak."""
