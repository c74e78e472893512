"""How fast it is, beside what else could be done on the same servers. Run by ``make bench``."""
