"""What turns one instance into the frames that are served: pure functions, and the process that runs them."""
