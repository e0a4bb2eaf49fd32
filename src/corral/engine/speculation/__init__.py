"""Speculation: tokens guessed ahead, and checked by the model that would have written them."""
