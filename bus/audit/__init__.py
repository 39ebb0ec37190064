"""The audit trail: who administered the bus, and who was refused, in a table that is only ever appended to.

Each record's hash is over the hash of the one before it, so what was changed, or taken out of the middle, shows.
"""
