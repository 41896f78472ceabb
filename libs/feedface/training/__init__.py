"""Training of a method beside a frozen backbone: objective, loop, checkpoints, tracking."""
