"""File formats, read without trusting them: GGUF, rwkv.cpp's, `.pth` and the pickle inside it, whole or by ranges.

Imports core, system and net.
"""
