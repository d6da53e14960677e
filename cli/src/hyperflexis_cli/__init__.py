"""The `hyperflexis` command, and `LocalStack`: the whole suite as processes of this machine."""
