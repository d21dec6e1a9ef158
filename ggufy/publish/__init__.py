"""Where results go: a folder or a repo on the Hub, with its model card. Imports what makes a job (steps and below) and
its records."""
