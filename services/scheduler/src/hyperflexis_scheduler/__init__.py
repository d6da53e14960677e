"""The scheduler: a pure core that decides, and a thin gRPC and Redis shell around it."""
