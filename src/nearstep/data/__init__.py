"""Data on disk: latents in shards, videos and prompts, in the order that training reads them."""
