"""RWKV itself: the names and shapes of its tensors, its vocabulary, its chat format, and conversion to GGUF.

Imports core, system and formats.
"""
