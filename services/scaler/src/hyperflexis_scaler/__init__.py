"""The scaler: the fleet of one cell. A pure core decides, a provider acts, Redis remembers what was meant."""
