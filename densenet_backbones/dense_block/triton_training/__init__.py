"""Triton kernels of training: norms, units, passes and their gradients."""
