"""Sizes of networks as their config files may give them: far above any that there is, and below what hangs a machine.

A network within them is described, without memory for its weights, in a second.
"""

from typing import Annotated

from pydantic import Field

Layers = Annotated[int, Field(ge=1, le=1024)]
Width = Annotated[int, Field(ge=1, le=1 << 16)]
Vocabulary = Annotated[int, Field(ge=1, le=1 << 20)]
SidePx = Annotated[int, Field(ge=1, le=1 << 14)]
Ratio = Annotated[float, Field(gt=0, le=64, allow_inf_nan=False)]
