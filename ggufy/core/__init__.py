"""Records and rules: what a job, a plan, a quant type and a measurement are, and how an error is worded.

Values in, values out: nothing here reads a file, a clock or the network. Imports nothing of ggufy.
"""
