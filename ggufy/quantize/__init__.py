"""Quantization: which tensor gets which type, how large the file becomes, and the engine that makes it.

Imports core, system, formats, models (what an architecture's tensors do) and llama (ggml's kernels).
"""
