"""Measurements of maskwright beside its peers: cases, adapters, timing, checks and tables."""
