"""Which people of the mini world an evaluation takes. Nobody is trained on them."""

WORLD_SEED = 0
FIRST_IDENTITY, MAX_IDENTITIES = 20_000, 10_000  # 30 000 and on are the demo's and the tests'
GALLERY = 4  # pictures of each person that no system is shown
