"""The transient store in memory."""
