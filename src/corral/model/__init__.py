"""The network: configuration, presets, rotary embeddings, and the Llama module."""
