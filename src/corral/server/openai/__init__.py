"""OpenAI's interface: chat and text completions, responses, models."""
