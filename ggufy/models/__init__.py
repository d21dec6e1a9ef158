"""Architectures, one file each (rwkv6.py, rwkv7.py; registry.py lists them), their vocabularies, chat formats, and
conversion to GGUF.

Imports core, system and formats.
"""
