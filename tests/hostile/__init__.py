"""Messages of every kind, damaged in every way, against a running service."""
