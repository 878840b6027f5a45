"""Streams: text without end in so many entries, compressed or evicted as it comes."""
