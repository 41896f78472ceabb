"""`python -m feedface` is `feedface`: for launchers, which start modules (accelerate launch -m feedface train …)."""

from feedface.commands import cli

if __name__ == "__main__":
    cli()
