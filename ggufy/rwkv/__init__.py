"""RWKV itself: the names and shapes of its tensors, its vocabulary, and conversion to GGUF."""
