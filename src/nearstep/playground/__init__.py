"""The playground: a procedural captioned world with exact ground truth, and what measures clips of it."""
