"""dynadapt: score a stream of tokens, learn from each segment right after scoring it."""
__version__ = "0.1.0"
