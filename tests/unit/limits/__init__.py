"""Limits: buckets, places and addresses, without a server."""
