"""Requests to tokens: sampling and the generation loop."""
