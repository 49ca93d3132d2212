"""Measurements that a reader can repeat: speed, quality."""
