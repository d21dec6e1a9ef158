"""Quantization: which tensor gets which type, and how large the file becomes."""
