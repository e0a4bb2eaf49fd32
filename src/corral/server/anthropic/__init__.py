"""Anthropic's interface: messages, and counting their tokens."""
