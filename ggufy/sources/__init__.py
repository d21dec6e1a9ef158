"""What can be opened as a source: RWKV checkpoints (.pth), and GGUF files."""
