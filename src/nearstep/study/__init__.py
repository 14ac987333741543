"""A blind preference study: pairs of clips whose makers nobody who votes can see, votes, and what they add up to."""
