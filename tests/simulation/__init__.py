"""The service's core against a hostile broker and database in memory, every step decided by a seed."""
