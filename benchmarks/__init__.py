"""Measurements that the code and the documentation refer to."""
