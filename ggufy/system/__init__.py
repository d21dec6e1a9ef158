"""This machine: files and locks, clock, output streams, environment and settings, child processes, CPU and memory.

Imports core.
"""
