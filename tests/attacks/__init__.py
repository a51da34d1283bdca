"""Attacks on a live Space."""
