"""How good quantized weights are made: round to nearest, and GPTQ."""
