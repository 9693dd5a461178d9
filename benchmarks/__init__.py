"""Measurements, and what runs them. A package of its own, which one of this name elsewhere on the path does not hide."""
