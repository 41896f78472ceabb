"""Noise schedule, losses, guidance and sampling."""
