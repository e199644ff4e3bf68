"""SQL for the components that keep facts: the connection, and a transactional outbox."""
