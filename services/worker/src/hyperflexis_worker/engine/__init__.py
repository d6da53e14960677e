"""The engine process and the shell's handle on it: framed messages over one socket."""
