"""Versions as parameters of PyTorch, JAX and NumPy, in the safetensors format."""
