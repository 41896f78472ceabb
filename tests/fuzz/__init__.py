"""Broken inputs by the thousand, each handed to the function that a user's input reaches: see `run.py`."""
