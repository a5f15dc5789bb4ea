"""Conformance suites of the storage contracts, and a server in the process of a test.

For our own tests, and for new backends: inherit the suite of the contract and implement how to create one.
"""
