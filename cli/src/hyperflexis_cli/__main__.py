"""`python -m hyperflexis_cli`."""

from hyperflexis_cli.app import main

main()
