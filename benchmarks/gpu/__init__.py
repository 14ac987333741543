"""The kit for a machine with a GPU: wheels, one command, parts in order, JSON (docs/gpu.md)."""
