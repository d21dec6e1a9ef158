"""File formats, read without trusting them: GGUF, `.pth` and the pickle inside it, whole or by ranges.

Imports core, system and net.
"""
