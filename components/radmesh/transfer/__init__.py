"""Objects move between components: sender, receiver, ranged reader, registration pump (transfer.v1)."""
