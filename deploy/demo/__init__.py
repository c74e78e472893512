"""The main job on real trades, from the bots' messages to a downstream cache, and a check of every row of it."""
