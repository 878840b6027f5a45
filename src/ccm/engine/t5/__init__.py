"""Encoder-decoders (T5): the decoder reads the memory as if it were encoded text."""
