"""Where job records and results live: folders on this machine."""
