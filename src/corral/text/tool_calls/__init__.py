"""Tool calls in a model's text: the incremental parser, and which form of call a prompt asks for."""

from corral.text.tool_calls.parser import CallParser
from corral.text.tool_calls.pieces import CallArguments, CallBegun, CallEnded, ChatPiece, TextPiece

__all__ = ["CallArguments", "CallBegun", "CallEnded", "CallParser", "ChatPiece", "TextPiece"]
