"""Config values given by flag (--config.train.batch_size=8): which there are, and what is wrong with one."""

import re
from collections.abc import Iterator, Mapping, Sequence


def config_keys(config: Mapping, prefix: str = "config") -> Iterator[str]:
    """A line for each value of a config: the flag that changes it, with the value it has."""
    for key, value in config.items():
        name = f"{prefix}.{key}"
        if isinstance(value, Mapping) or hasattr(value, "items"):  # ml_collections' dict is no Mapping
            yield from config_keys(value, name)
        else:
            yield f"--{name}={value}"


def explain(error: Exception, arguments: Sequence[str]) -> str:
    """What absl and ml_collections say of a wrong argument, as a sentence; of an unknown key they say little but it."""
    text = str(error.args[0]) if error.args else str(error)
    lookup = re.search(r"Attempting to lookup: ([\w.]+)", text)
    # The key comes in quotes, and after an error on the way in quotes of quotes.
    named = re.match(r"[\"'\\]*'(\w+)\\?'", text) if isinstance(error, KeyError | AttributeError) else None
    if not lookup and not named:
        return " ".join(text.split())
    key = lookup[1].rpartition(".")[2] if lookup else named[1]
    flags = [argument.lstrip("-").partition("=")[0] for argument in arguments]
    flag = next((flag for flag in flags if key in flag.split(".")), key)
    near = re.search(r'Did you mean "(\w+)"', text)
    return f"--{flag}: the config has no {key}{f' (is {near[1]} meant?)' if near else ''}"
