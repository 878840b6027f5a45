"""Streams: text of unlimited length in a cache of fixed size, which compresses or drops old text."""
