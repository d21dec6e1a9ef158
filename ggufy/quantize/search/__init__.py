"""The search for a mix: what each type loses in each tensor, and the best choice of types for a size."""
