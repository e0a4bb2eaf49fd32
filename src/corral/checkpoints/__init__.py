"""Files to tensors and back: resolving names, reading and writing checkpoints."""
