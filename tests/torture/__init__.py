"""Proofs of the promises in `docs/guarantees.md`: each tries to break one, for a few rounds in `make test`, for many in
`make torture`."""
