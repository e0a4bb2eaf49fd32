"""What is trained: the whole model, or adapters beside it."""
