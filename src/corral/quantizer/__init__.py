"""How full-precision models become quantized ones."""
