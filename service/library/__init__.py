"""The manual's functions: each opens a session of its own, calls repositories, and gives what the manual says."""
