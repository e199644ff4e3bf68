"""What every component stands on: configuration, lifecycle, servers and channels, identity, errors, logs, metrics."""
