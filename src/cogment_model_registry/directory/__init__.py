"""The Cogment Directory: registering with one, asking one, and a small real one."""
