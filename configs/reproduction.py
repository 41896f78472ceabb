"""How much `python -m research.reproduction` trains and measures; see research/reproduction."""

from ml_collections import ConfigDict


def get_config(preset: str = "") -> ConfigDict:
    """Budgets for two CPU cores; more samples and people give narrower intervals. Preset "quick": fewer people."""
    config = full()
    if preset == "quick":
        config.measure.update(people=24)
    return config


def full() -> ConfigDict:
    """Everything, in some hours."""
    return ConfigDict(
        {
            "model": "models/mini",
            "world": {"seed": 0, "first_identity": 0, "identities": 1200, "per_identity": 10},
            "train": {
                "samples": 8_192,  # seen by each run
                "batch_size": 16,
                "lr": 1e-3,
                "warmup_steps": 50,
                "ema": 0.99,
                "min_snr": 0.02,  # of all losses alike; the paper's 0 is trained beside it
                "measured_at": (2_048, 4_096, 8_192),  # samples; a checkpoint of each is kept
                "seeds": (0, 1),  # of claim 1; the other claims use the first
                "mlp_ratio": 0.25,
            },
            "measure": {
                "people": 100,
                "samples_per_person": 1,
                "references": 5,
                "steps": 10,  # evaluations a picture
                "seed": 0,
                "batch_size": 50,
            },
            "dreambooth": {"people": 24, "pictures": 4},
        }
    )
