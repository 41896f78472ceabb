"""What a user may choose among, by name; `guidance` and `sampling` say what each is. Without torch."""

UNCOND_MODES = ("true_uncond", "empty_token", "paper")
MULTISTEP = ("dpmsolver++", "dpmsolver++3m", "unipc")
GRIDS = ("karras", "uniform")
LEADING = "ddim:leading"
SCHEDULERS = (
    *MULTISTEP,
    *(f"{name}:{grid}" for name in MULTISTEP for grid in GRIDS),
    "dpmsolver++singlestep",
    "ddim",
    LEADING,
    "ddim:flashface",
)
