"""What only an engine on a CUDA device needs. Nothing here is imported elsewhere; the driver, Triton and torch are
loaded by what uses them, so that a process can export memory without torch."""
