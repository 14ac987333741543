"""The stages of a run, in order: codec, teacher (with its text encoder), causal initialisation."""
