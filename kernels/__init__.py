"""Triton kernels, one family of ops a file, a large one with files of kernels beside it; installed as ``dynadapt.kernels``.

Every public function has the name, the signature and the meaning of its reference in ``dynadapt.ops`` and launches on
the current CUDA stream. None of them allocates, waits for the device or reads a tensor on the host, so all of them can
be captured in a CUDA graph. Where scratch memory is needed it comes from ``common.scratch``.

Without a GPU the kernels run under Triton's interpreter: set TRITON_INTERPRET=1 before this package is imported.
"""
