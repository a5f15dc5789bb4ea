"""The tests; see CONTRIBUTING.md for their layout."""
