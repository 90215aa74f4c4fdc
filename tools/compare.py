"""Compare methods on a config over seeds; ``mtl-compare`` is the same command."""

from mtl_plugins.compare.command import main

if __name__ == "__main__":
    main()
