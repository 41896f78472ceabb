"""What things cost: a picture, a training step, a record. Nothing here is needed to use FeedFace."""
