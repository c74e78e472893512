"""Everything that runs the service: its servers, its image, its demonstration."""
