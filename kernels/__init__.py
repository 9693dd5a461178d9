"""Triton kernels, one op a file; installed as ``dynadapt.kernels``."""
