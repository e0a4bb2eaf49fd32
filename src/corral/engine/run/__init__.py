"""A step on the device: the batch, the runner, paged attention, adapters."""
