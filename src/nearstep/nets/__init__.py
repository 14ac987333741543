"""The networks: transformer, cache, codec, text. They know shapes and tensors, nothing of losses or ranks."""
