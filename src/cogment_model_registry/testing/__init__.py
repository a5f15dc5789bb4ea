"""Conformance suites of the storage contracts, and a server in the process of a test.

For our own tests, and for those who add a backend: inherit the suite of the contract and say how to make one.
"""
