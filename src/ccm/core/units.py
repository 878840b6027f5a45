"""Sizes as people write them."""

from __future__ import annotations


def size(count: int | float) -> str:
    """A number of bytes with its unit; 1 KB is 1,024 bytes."""
    for unit in ("bytes", "KB", "MB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "bytes" or count >= 10 else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GB" if count < 1024 else f"{count / 1024:,.1f} TB"
