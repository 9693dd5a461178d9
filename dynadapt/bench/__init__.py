"""Measurements: cases of single ops, sides raced against each other, profiles, and what a step should take."""
