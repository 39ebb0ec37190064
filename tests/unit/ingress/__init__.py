"""Tests of bus.ingress: signatures against vectors of the vendors, templates, rows."""
