"""Networks that read the support set and answer with a distribution."""
