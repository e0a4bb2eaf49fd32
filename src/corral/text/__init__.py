"""Text to tokens and back: messages, tokenizers, prompt formats, the incremental detokenizer."""
