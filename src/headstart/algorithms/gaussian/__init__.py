"""Gaussian priors that are conditioned on the support set in closed form."""
