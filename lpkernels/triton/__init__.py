"""Triton kernels, one file per op; portable to sm_75 and later, and to the interpreter for tests without a GPU."""
