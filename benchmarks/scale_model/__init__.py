"""A model on paper of registries that are larger than the machine that measures: what limits first, and what it costs.

`python -m benchmarks.scale_model measure` measures what one server, PostgreSQL and an object store take for a unit of
work, and writes docs/benchmarks/scale.json. `python -m benchmarks.scale_model` computes from it, and from inputs of the
reader, as docs/scale_model.md explains.
"""
