"""The archive in a directory, and its tools: verify, repair, export, import."""
