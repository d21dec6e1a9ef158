"""One page's services: its jobs as people see them, its chats, and who may see and do what.

Imports everything but cli and ui.
"""
