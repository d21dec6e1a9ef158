"""HTTP: sessions to the Hub and elsewhere, files read by ranges, verified, resumed, and what answers mean.

Imports core and system.
"""
