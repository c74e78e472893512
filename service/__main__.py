"""``python -m service`` is ``persistence``."""

from service.cli import main

main()
