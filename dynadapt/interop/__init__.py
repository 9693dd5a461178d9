"""dynadapt from other code: torch, JAX, numpy, transformers, PEFT, lm-evaluation-harness, serving."""
