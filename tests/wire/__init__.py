"""Tests of what crosses the network."""
