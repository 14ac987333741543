"""A model on disk: folder, student, configs, loading, weights, published layouts, conversion, card. It runs none."""
