"""Several nodes on one log: which of them this process belongs to, and what only one process of all may do at a time."""
