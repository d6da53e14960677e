"""Where instances come from: one small seam, its public fake, and local processes."""
