"""The names that others give to RWKV's tensors, and how they lay them out, one file a family; layouts.py tells which
it is.
"""
