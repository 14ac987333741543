"""The judge of the playground: it looks for the object, fits it, redraws it, and compares with the caption."""
