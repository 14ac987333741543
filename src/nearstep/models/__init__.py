"""A model on disk: folder, student, loading, weights, published layouts, conversion, card. It runs none."""
