"""From what a user types to a finished job: request, estimate, queue, runner, and the workspace that they share.

Imports everything but who asks for jobs: service, cli and ui.
"""
