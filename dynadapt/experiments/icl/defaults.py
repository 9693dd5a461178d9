"""How trained models are measured unless it is asked for otherwise."""

PROMPTS, BATCH = 1280, 64  # prompts of a test, and of them drawn at a time: Garg et al.'s
DRAWS, LEVEL = 1000, 0.9  # of the bootstrap behind a band
WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0)  # of the first class in a convex combination
