"""What can be opened as a source, where it is, and what it is: checkpoints and GGUF files, here or on the Hub.

Imports core, system, net, formats, models and demo.
"""
