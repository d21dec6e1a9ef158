"""Jobs: their records, their runs, and what becomes of a job when something goes wrong."""
