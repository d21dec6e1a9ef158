"""Where job records and results live: repos on the Hugging Face Hub, or folders on this machine.

protocol      what a hub can do; huggingface.py and local.py do it
lease         one runner at a time
state         job records in the repo ggufy-state
budget        how many commits an hour
"""
