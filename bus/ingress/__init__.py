"""Signed ingress: webhooks that others send to the bus, each verified before it is read, and taken once."""
