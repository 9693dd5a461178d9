"""Runs as files: texts that are read, directories that are written, and what is told, drawn and exported of them."""
