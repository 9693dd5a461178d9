"""The parts of benchmarks/flops_vs_loss.py: cells of the grid, evidence from their scores, verdicts, figures, the report."""
