"""Training on the network that serves: one loop, objectives as objects, adapters and whole models."""
