"""Conversations: turns as tokens, replies, and the memory that follows them."""
