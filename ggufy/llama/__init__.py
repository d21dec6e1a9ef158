"""llama.cpp as a set of programs: its pinned build, how they are started and stopped, and what they print.

Imports core, system, formats and models.
"""
