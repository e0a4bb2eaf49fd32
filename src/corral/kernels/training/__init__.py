"""Forward and backward passes on a CPU, by native kernels: what training takes in place of torch's ops."""
