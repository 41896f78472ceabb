"""Settings of every stage that builds the miniature, for `python -m feedface.synthetic.train --preset cpu|gpu`.

People of the portrait world never overlap: training 0..., held out 5000..., inspector 10000..., evaluation 20000...,
demo and tests 30000...
"""

from ml_collections import ConfigDict

from feedface.training.fit import fit_config


def get_config(preset: str = "cpu") -> ConfigDict:
    """128 px. Preset "cpu": about ten hours of training on two cores. "gpu": larger, one data-centre GPU."""
    config = {"cpu": cpu, "gpu": gpu}[preset]()
    return config.lock()


def cpu() -> ConfigDict:
    """Small enough for two cores; speeds are samples/s there."""
    size = 128
    return ConfigDict(
        {
            "world": {
                "seed": 0,
                "image_size": size,
                "train": {"first_identity": 0, "identities": 4800, "per_identity": 8},
                "held_out": {"first_identity": 5000, "identities": 100, "per_identity": 4},
            },
            # 16x16 latents: with patches of 2 the U-ViT sees 64 image tokens.
            "vae": fit_config(
                image_size=size, stack=4, channels=(96, 128), layers_per_block=1, latent_channels=12,
                kl_weight=5e-4, start="", minutes=60.0, batch_size=16, lr=2e-3, ema_decay=0.999, amp=True,
            ),
            "clip": fit_config(
                image_size=size, patch_size=16, vision_width=128, vision_layers=3, text_width=128, text_layers=3,
                embedding_dim=64, num_text_tokens=28, start="", minutes=12.0, batch_size=128, lr=1e-3,
                weight_decay=0.05, amp=True,
            ),
            "face_encoder": fit_config(
                face_size=64, patch_size=8, width=128, layers=5, embedding_dim=128, number_weight=4.0,
                minutes=7.0, batch_size=128, lr=1.5e-3, weight_decay=0.05, amp=True,
            ),
            "uvit": fit_config(
                image_size=size, patch_size=2, width=256, depth=7, num_heads=4, noise_text=0.08, empty_text=0.07,
                clip_weight=0.1, face_weight=2.0, feature_weight=5.0, min_snr=5.0, start="",
                minutes=360.0, batch_size=64, lr=1e-3, muon_lr=4e-3, schedule="trapezoid", warmup_steps=300,
                ema_decay=0.999, amp=True,
            ),
            "unet": fit_config(
                image_size=size, channels=(64, 128), layers_per_block=1, norm_groups=16, head_width=32, empty_text=0.1,
                min_snr=5.0, minutes=98.0, batch_size=32, lr=1e-3, schedule="trapezoid", warmup_steps=300,
                ema_decay=0.999, amp=True,
            ),
            "control_unet": {
                "image_size": size, "seed": 0, "steps": 1500, "batch_size": 32, "lr": 1e-3, "precision": "fast",
                "sites": (), "mlp_ratio": 0.25,
            },
            "control": {
                "image_size": size, "seed": 0, "steps": 6300, "batch_size": 32, "lr": 1e-3, "precision": "fast",
                "sites": ("in_blocks.0", "in_blocks.2", "out_blocks.0", "out_blocks.1", "out_blocks.2"),
                "mlp_ratio": 0.25,
            },
            "decoder": fit_config(latent_noise=0.05, minutes=8.0, batch_size=16, lr=1e-3, amp=True),
            "detector": fit_config(image_px=128, width=24, minutes=4.5, batch_size=32, lr=2e-3),
            "parser": fit_config(
                image_px=size, identities=600, per_identity=4, crop_px=128, expand=2.4, width=16, start="",
                small={"crop_px": 96, "minutes": 24.0, "lr": 3e-3}, minutes=65.0, batch_size=8, lr=2e-3,
            ),
            "inspector": fit_config(
                image_size=size, world_seed=0, first_identity=10_000, identities=1500, held_out=100, per_identity=10,
                width=32, embedding_dim=128, scale=20.0, margin=0.2, attribute_weight=2.0,
                steps=5000, batch_size=96, lr=3e-3, weight_decay=0.05, amp=True,
            ),
            "bundle": {
                "preset": "cpu", "hardware": "2 CPU cores", "image_size": size, "out": "models/mini", "max_mib": 60.0,
                "defaults": {
                    "preset": "fast", "guidance": 4.0, "face_scale": 1.25, "uncond": "true_uncond",
                    "pag_scale": 2.0, "pag_interval": [500.0, 900.0],
                },
            },
            "bundle_unet": {
                "preset": "cpu", "hardware": "2 CPU cores", "image_size": size, "out": "models/mini-unet",
                "max_mib": 30.0, "defaults": {"preset": "balanced", "guidance": 4.0, "face_scale": 1.0},
            },
        }
    )  # fmt: skip


def gpu() -> ConfigDict:
    """About ten times the size; minutes on one data-centre GPU, after the portraits are rendered."""
    config = cpu()
    with config.unlocked():
        config.world.train.identities = 10_000
        config.vae.update(channels=(64, 128, 256), minutes=5.0, batch_size=128, lr=5e-4)
        config.clip.update(vision_width=256, text_width=256, patch_size=16, minutes=2.0, batch_size=512)
        config.face_encoder.update(face_size=96, patch_size=12, width=256, layers=7, minutes=4.0, batch_size=512)
        config.uvit.update(width=512, depth=13, num_heads=8, minutes=15.0, batch_size=512, lr=5e-4)
        config.control.update(steps=20_000, batch_size=256, lr=3e-4)
        config.unet.update(channels=(128, 256, 384), minutes=15.0, batch_size=512, lr=5e-4)
        config.control_unet.update(steps=20_000, batch_size=256, lr=3e-4)
        config.decoder.update(minutes=5.0, batch_size=128, lr=5e-4)
        config.detector.update(minutes=3.0, batch_size=64)
        config.parser.update(identities=2000, width=24, minutes=3.0, batch_size=128)
        config.parser.small.minutes = 2.0
        config.inspector.update(per_identity=20, steps=12_000)
        config.bundle.update(preset="gpu", hardware="one GPU", out="models/mini-gpu", max_mib=300.0)
        config.bundle_unet.update(preset="gpu", hardware="one GPU", out="models/mini-unet-gpu", max_mib=300.0)
    return config
