"""Clips and streams from a loaded model: pipeline, request, session, recording, decoding, output."""
