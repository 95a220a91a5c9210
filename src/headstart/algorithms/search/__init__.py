"""Hyper-parameters of anything with fit and predict."""
