"""Pretrained networks without their heads, each opened by the door that its source names."""
