"""The arithmetic of the network on a CPU: native kernels, where they are built."""
