"""The key-value cache: blocks, prefixes, tensors, and how much memory they get."""
