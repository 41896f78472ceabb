"""FeedFace: put a given person into pictures that a text describes, without training per person."""

__version__ = "0.1.0"
