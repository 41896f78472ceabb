"""The miniature: every component of FeedFace trained from nothing on the synthetic portraits.

Run `python -m feedface.synthetic.train --help` for the stages.
"""
