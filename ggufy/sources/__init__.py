"""What can be opened as a source, and where it is: here or on the Hub. Formats have a file each (rwkv_pth.py,
gguf_model.py; registry.py lists them), which says what a source is and makes its base GGUF.

Imports core, system, net, formats, models and demo.
"""
