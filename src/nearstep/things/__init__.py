"""The world of things: captioned clips of one or two things in front of a place, with exact ground truth."""
