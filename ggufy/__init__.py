"""ggufy turns language models, RWKV `.pth` checkpoints first, into GGUF quants."""

__version__ = "0.1.0"
