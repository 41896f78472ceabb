"""Weights on disk: our own bundles (`bundle`) and the authors' files (`official`)."""
