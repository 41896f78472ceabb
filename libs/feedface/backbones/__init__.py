"""Diffusion backbones: networks that predict noise and offer every block to a `control`."""
