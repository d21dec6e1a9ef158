"""Records of jobs: on this disk, in the state repo, of their runs; and what an error makes of a job.

Imports core, system, hub and steps.
"""
