"""Encoder-decoders (T5): the memory is read by the decoder as if it were the encoded text."""
