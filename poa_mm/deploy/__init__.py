"""Subnets as files, and checkpoints from elsewhere."""
