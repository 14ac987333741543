"""What a causal network learns by, one objective a file; a new one is a file here and a line in table.py."""
