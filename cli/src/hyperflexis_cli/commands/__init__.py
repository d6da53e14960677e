"""One module per command or family of commands: options in, exit status out."""
