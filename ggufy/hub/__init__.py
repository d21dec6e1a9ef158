"""A hub as the program asks it (protocol.py), the Hugging Face Hub behind it, commits and their budget, the lease.

Imports core, system and net.
"""
