"""Distillation: a model that draws in four evaluations without guidance, from one that needs many with it."""
