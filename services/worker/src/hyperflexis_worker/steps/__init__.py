"""Pure, like `core`, for the engine process: what one step does, for whom, and with which blocks. Sequences and samples
are what the two processes tell each other."""
