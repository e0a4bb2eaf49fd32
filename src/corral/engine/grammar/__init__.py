"""Constrained decoding: grammars compiled before admission, masks while the network runs."""
