"""The server: the engine behind the interfaces of OpenAI, Anthropic and TGI, and the chat page."""
