"""Attention over shared prefixes.

shared_prefix.py   queries, suffix KV and prefix KV -> attention output, in plain torch on any device
triton_kernels.py  the same in two GPU kernels; imported only if Triton is installed
cuda_graphs.py     capture and replay of decode steps
"""
