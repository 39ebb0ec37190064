"""Further extensions on the same contract, one file each: a module whose last function is `register(app, bus)`."""
