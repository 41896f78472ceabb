"""Shares of a list of work, for several processes that know nothing of each other."""

from feedface.common.errors import UserError


def parse_shard(text: str) -> tuple[int, int]:
    """ "0/2" -> (0, 2): the first of two halves is `items[0::2]`. `UserError` for what is no share."""
    share, _, shares = text.partition("/")
    if not (share.isdigit() and shares.isdigit() and int(share) < int(shares)):
        raise UserError(f"--share {text}: not a share; use 0/2 and 1/2 for two halves")
    return int(share), int(shares)
