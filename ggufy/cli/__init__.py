"""The command line, `python -m ggufy`: commands, and what they print. Imports everything but service and ui."""
