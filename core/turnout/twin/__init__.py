"""Pure-Python twins of the native kernels: same names, signatures and errors, held together by `tests/twins/`."""
