"""The Archive Server: objects in the LMDB cache and in the permanent tier."""
