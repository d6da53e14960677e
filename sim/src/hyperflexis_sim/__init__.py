"""Discrete-event simulator of HyperFlexis: the services' own cores, a virtual clock."""
