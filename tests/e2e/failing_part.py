"""``persistence`` with a defect: the method that ``FAILING_PART`` names raises what nobody expects."""

import importlib
import os
from typing import Never


async def _fail(*_: object) -> Never:
    raise ZeroDivisionError


def main() -> None:
    module, name, method = os.environ["FAILING_PART"].split(":")
    setattr(getattr(importlib.import_module(module), name), method, _fail)
    importlib.import_module("service.cli").main()


if __name__ == "__main__":
    main()
