"""Faces in pictures: where they are, how they are cropped, and whose they are."""
