"""Texts to calibrate and to measure with: where they come from, and that none of one is in the other.

Imports core, system, net, sources and demo.
"""
