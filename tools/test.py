"""Evaluate a checkpoint; ``mtl-test`` is the same command."""

from mtl_plugins.mm.test import main

if __name__ == "__main__":
    main()
