"""How fast a model runs here: speed, latency, memory, and how near that is to what the memory can give."""
