"""Runs that are there: what `dynadapt runs` lists, tells apart and removes, and what `dynadapt export` writes of them for other programs."""
