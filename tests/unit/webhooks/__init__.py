"""Tests of bus.webhooks: values and policies."""
