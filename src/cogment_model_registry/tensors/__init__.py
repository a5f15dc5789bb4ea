"""What the modules for NumPy, PyTorch and JAX share: trees, the safetensors format, and arrays in memory."""
