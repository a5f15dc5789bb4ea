"""Tests of messages on the network."""
