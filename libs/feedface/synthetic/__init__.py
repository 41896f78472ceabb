"""The miniature: a world of drawn portraits (`world`), and the small models trained on it (`train`)."""
