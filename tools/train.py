"""Train from a config; ``mtl-train`` is the same command."""

from mtl_plugins.mm.train import lay_over, main

__all__ = ["lay_over", "main"]

if __name__ == "__main__":
    main()
