"""Conversations with llama-cli and llama-completion: processes, the pool that keeps them loaded, and their texts."""
