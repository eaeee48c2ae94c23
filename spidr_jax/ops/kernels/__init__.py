"""The same operations as kernels for GPUs."""
