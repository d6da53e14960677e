"""The scaler's decisions: observations and time in, actions out. No clock, socket, process or randomness."""
