"""`dynadapt diagnose`: what adapting a model did to its scores of held-out text, and which tokens that came from.

driver.py lists the steps; attribution.py holds the arithmetic and its exact identity.
"""
