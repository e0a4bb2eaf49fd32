"""Many devices and machines: parallel plans, applied to the network from outside."""
