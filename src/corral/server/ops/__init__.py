"""Operations: who may ask, how much, what is logged and measured, and how the server ends."""
