"""rwkv.cpp's world: its files made from an RWKV's tensors, quantized, merged with adapters and brought up to date, and
whatever runs them. What stands in a file is parsed in `formats`.

Imports core, system, formats, models and llama.
"""
