"""How well a model keeps the person and follows the prompt: metrics, the judge of the mini world, reports."""
