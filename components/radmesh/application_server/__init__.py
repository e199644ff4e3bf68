"""The Application Server: the only door for clients. Sessions, roles, audit."""
