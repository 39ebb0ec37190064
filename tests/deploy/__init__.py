"""The files that an operator starts: they are what they say, they name what exists, and they work as far as it can be tried."""
