"""Generated from `wire/protos/` by `tools/generate_protos.py`: never edited."""
