"""What FeedFace is compared with: methods that train for each person."""
