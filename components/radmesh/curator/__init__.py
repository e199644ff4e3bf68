"""The Curator: makes the web cache, pictures for remote viewing, and serves it."""
