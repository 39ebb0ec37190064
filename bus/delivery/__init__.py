"""Delivery beyond the plain push: what must be acked, queues, delays, requests, replays, threads.

The rules live in the store's transaction (bus.storage.ledger); here is who carries messages to whom, and when.
"""
