"""The parts of embed.py and probe.py."""
