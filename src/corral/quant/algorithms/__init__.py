"""How good quantized weights are made: round to nearest, AWQ and GPTQ."""
