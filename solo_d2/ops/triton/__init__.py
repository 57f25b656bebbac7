"""Triton kernels, one file for each; imported by what launches them, never before."""
