"""Clips and streams from a loaded model: model, pipeline, request, session, state, recording, decoding, output."""
