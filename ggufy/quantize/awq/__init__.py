"""Activation-aware scales: which tensors they can be folded into, and how they are found."""
