"""The interface of Text Generation Inference: generate, with its stream, and info."""
