"""One loss term a file: pure functions of tensors and denoisers, returning [B] before any reduction."""
