"""The Database Server: the one source of truth for demographics, status, places, jobs, changes, users and audit."""
