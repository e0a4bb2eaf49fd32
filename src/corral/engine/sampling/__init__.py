"""How the next token is chosen: parameters, the batched sampler, stop strings."""
