"""Retention: policies by type, the sweep that removes what has expired, and the archive of what went.

The writer stamps each message with the moment it expires, and every read leaves out what has (bus/storage), so a message
is gone at its moment, whenever the sweep comes by. Everything goes by the bus's clock.
"""
